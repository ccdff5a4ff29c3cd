# SPDX-License-Identifier: Apache-2.0
"""The steps of a model runner, timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from vllm_medusa import timing

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class TimedSteps:
    """Mixed in before vLLM's model runner; sends what `vllm_medusa.timing` sampled to
    the scheduler, with the next step's tokens."""

    def execute_model(
        self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any
    ) -> Any:
        """As `GPUModelRunner.execute_model`."""
        timing.begin_step(scheduler_output)
        return super().execute_model(  # type: ignore[misc]
            scheduler_output, *args, **kwargs
        )

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """As `GPUModelRunner.sample_tokens`."""
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        timing.end_step()
        if (parts := timing.take_sample()) is not None:
            _attach(parts, output)
        return output


def _attach(parts: dict[str, float], output: Any) -> None:
    if isinstance(output, AsyncModelRunnerOutput):
        # What its `get_output` fills in and returns.
        output = output.model_runner_output
    if isinstance(output, ModelRunnerOutput):
        timing.attach(parts, output)
