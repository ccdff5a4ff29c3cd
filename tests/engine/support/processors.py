# SPDX-License-Identifier: Apache-2.0
"""Logits processors as users write them; all look at the text before a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample import logits_processor as v1
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample import logits_processor as v2


def _argument(params: SamplingParams, name: str) -> int:
    return (params.extra_args or {}).get(name, 0)


class Avoid(v1.LogitsProcessor):
    """The last `avoid` tokens (an extra argument) of prompt and text don't come again.

    For Model Runner V1, which shows a processor its requests and their tokens.
    """

    def __init__(self, vllm_config: VllmConfig, device: Any, pin_memory: bool) -> None:
        self._requests: dict[int, tuple[int, list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: v1.BatchUpdate | None) -> None:
        process_dict_updates(self._requests, batch_update, self._request)

    @staticmethod
    def _request(
        params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> tuple[int, list[int], list[int]] | None:
        count = _argument(params, "avoid")
        return (count, prompt or [], output) if count else None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for index, (count, prompt, output) in self._requests.items():
            logits[index, (prompt + output)[-count:]] = float("-inf")
        return logits


class AvoidOnV2(v2.LogitsProcessor):
    """`Avoid` for Model Runner V2, which shows a processor the rows of the step.

    `avoid` is at most 2.
    """

    def __init__(
        self, vllm_config: VllmConfig, req_states: v2.LogitsProcRequestState
    ) -> None:
        self._all_token_ids = req_states.all_token_ids
        self._counts = torch.zeros(
            req_states.max_num_reqs, dtype=torch.int64, device=req_states.device
        )

    def add_request(self, req_idx: int, params: SamplingParams) -> bool:
        count = _argument(params, "avoid")
        self._counts[req_idx] = count
        return count > 0

    def apply(self, logits: torch.Tensor, ctx: v2.LogitsContext) -> torch.Tensor:
        requests = ctx.expanded_idx_mapping.long()
        rows = torch.arange(len(requests), device=logits.device)
        for distance in (0, 1):
            # A row's path is in the rows before it, the text in the request's tokens.
            on_path = ctx.input_ids[(rows - distance).clamp_min(0)]
            position = ctx.pos.long() - distance
            before = self._all_token_ids.gpu[requests, position.clamp_min(0)]
            is_on_path = ctx.expanded_local_pos >= distance
            tokens = torch.where(is_on_path, on_path, before).long()
            avoided = (self._counts[requests] > distance) & (position >= 0)
            logits[rows, tokens] = logits[rows, tokens].masked_fill(
                avoided, float("-inf")
            )
        return logits


class Favour(v1.AdapterLogitsProcessor):
    """A processor for each request that has the extra argument `favour`.

    One token is made likelier by so much: which one depends on the last token and on
    the length of the text. Model Runner V1's adapter for functions of one request.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], list[int], torch.Tensor], torch.Tensor] | None:
        bonus = _argument(params, "favour")

        def favour(
            prompt: list[int], output: list[int], logits: torch.Tensor
        ) -> torch.Tensor:
            last = (prompt + output)[-1]
            logits[(7 * last + len(output)) % len(logits)] += bonus
            return logits

        return favour if bonus else None
