# SPDX-License-Identifier: Apache-2.0
"""Keeping the hidden states that vLLM computes anyway while it answers.

What the heads are trained on is the very state they will read when served: the
model's output after its final norm, in the engine's own precision. Taking it during
generation saves a second pass over all tokens.
"""

from __future__ import annotations

from typing import Any

import torch

WORKER_EXTENSION = "vllm_medusa.train.capture.HiddenStateCapture"
"""Value for vLLM's `worker_extension_cls`."""


class HiddenStateCapture:
    """Methods that vLLM mixes into its worker (Model Runner V1).

    Row 0 of a request is the state at its last prompt token, from which answer token
    0 is drawn; row i the one from which answer token i is.
    """

    model_runner: Any

    def start_capture(self, whole_prompt: bool = False) -> None:
        """Keep the hidden states of the following requests.

        Args:
            whole_prompt: keep the states of all prompt tokens, not only the last
                one's: for answers that are given to the model as a prompt.
        """
        self.captured: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self.whole_prompt = whole_prompt
        self.hook = self.model_runner.get_model().register_forward_hook(self._keep)

    def take_captured(self) -> dict[str, list[tuple[int, torch.Tensor]]]:
        """Stop, and return request id -> [(first row, states [n, H] bfloat16)]."""
        self.hook.remove()
        captured, self.captured = self.captured, {}
        return captured

    def _keep(self, model: Any, args: Any, output: torch.Tensor) -> None:
        """Forward hook: sort the flat rows of one step by request."""
        batch = self.model_runner.input_batch
        starts = self.model_runner.query_start_loc.np
        for index, internal_id in enumerate(batch.req_ids):
            # The engine appends a random part to the id that the caller sees.
            request_id = internal_id.rsplit("-", 1)[0]
            first = 0 if self.whole_prompt else int(batch.num_prompt_tokens[index]) - 1
            begin, end = int(starts[index]), int(starts[index + 1])
            position = int(batch.num_computed_tokens_cpu[index]) - first
            skipped = max(0, -position)
            if begin + skipped < end:
                # clone: the output is a buffer that the next step writes again
                states = output[begin + skipped : end].to("cpu", torch.bfloat16)
                self.captured.setdefault(request_id, []).append(
                    (position + skipped, states.clone())
                )


def assemble(parts: list[tuple[int, torch.Tensor]], num_tokens: int) -> torch.Tensor:
    """Join a request's parts to its first rows, [num_tokens, H] bfloat16.

    Later parts win: after a preemption vLLM computes the same positions again. Rows
    past `num_tokens` are dropped.

    Raises:
        RuntimeError: a row is missing: the engine skipped it (a prefix cache hit).
    """
    hidden = torch.empty(num_tokens, parts[0][1].shape[1], dtype=torch.bfloat16)
    seen = torch.zeros(num_tokens, dtype=torch.bool)
    for position, states in parts:
        count = min(len(states), num_tokens - position)
        if count > 0:
            hidden[position : position + count] = states[:count]
            seen[position : position + count] = True
    if not bool(seen.all()):
        raise RuntimeError("vLLM did not compute all rows: is prefix caching on?")
    return hidden
