# SPDX-License-Identifier: Apache-2.0
"""A worker extension that compares heads and base model where both run.

Both read the same state, the model's output after its final norm, in the precision that
is served. One pass over a text that the model wrote gives it at all positions.

Give the class's dotted name as `LLM(worker_extension_cls=…)` and call its methods by
`LLM.collective_rpc`. It works with either model runner, as long as no CUDA graph hides
the model's call (`enforce_eager=True`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vllm_medusa.calibration.probability_mass import probability_mass

if TYPE_CHECKING:
    from vllm_medusa.propose import MedusaProposer

EXTENSION = "vllm_medusa.calibration.probe.HeadsProbe"


class HeadsProbe:
    """Mixed into `vllm_medusa.gpu_worker.MedusaWorker` by vLLM
    (`WorkerWrapperBase.init_worker`)."""

    model_runner: Any
    _proposer: MedusaProposer

    def start_probe(self) -> None:
        """Keep the states of the one request that runs until `measure_probe`."""
        self._states: list[torch.Tensor] = []
        runner = self.model_runner
        execute = runner.execute_model

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._rows = scheduler_output.total_num_scheduled_tokens
            return execute(scheduler_output, *args, **kwargs)

        # Only on the instance: the class keeps the runner's own method.
        runner.execute_model = execute_model
        self._hook = runner.get_model().register_forward_hook(self._keep)

    def measure_probe(
        self, first: int, count: int, temperature: float, num_ranks: int
    ) -> tuple[list[list[float]], list[int]]:
        """Stop, and measure all heads on tokens first + 1 … first + count of the text.

        Args:
            first: index of the last token of the prompt.
            count: tokens of the answer to measure on, at least 1.
            temperature: at which the answer was drawn.
            num_ranks: guesses of each head.

        Returns:
            The fields of `MassSums`.
        """
        self._hook.remove()
        del self.model_runner.execute_model
        states, self._states = torch.cat(self._states), []
        states = states[first : first + count]
        heads, model = self._proposer.heads, self.model_runner.get_model()
        ranks = min(num_ranks, heads.vocab_size)
        with torch.inference_mode():
            guesses = heads.best_tokens(states, heads.spec.num_heads, ranks)
            sums = probability_mass(
                guesses,
                lambda begin, end: model.compute_logits(states[begin:end]),
                temperature,
            )
        return sums.mass, sums.positions

    def _keep(self, model: Any, args: Any, output: torch.Tensor) -> None:
        # clone: the output is a buffer that the next step writes again; rows beyond
        # those of the step are padding.
        self._states.append(output[: self._rows].clone())
