# SPDX-License-Identifier: Apache-2.0
"""A worker extension that overrules how many nodes the scheduler asks for.

vLLM's table of drafts by batch size is fixed when the engine starts. To time all node
counts at all batch sizes in one engine, the number that the scheduler sends with every
step is replaced on its way into the model runner; everything behind it, from the heads
to the attention, then runs as if the table had said so.

Give the class's dotted name as `LLM(worker_extension_cls=…)` and call its method by
`LLM.collective_rpc("force_nodes", args=(n,))`.
"""

from __future__ import annotations

from typing import Any

EXTENSION = "vllm_medusa.calibration.worker.ForcedNodes"


class ForcedNodes:
    """Mixed into the worker class by vLLM (`WorkerWrapperBase.init_worker`)."""

    model_runner: Any

    def force_nodes(self, nodes: int | None) -> None:
        """From the next step on, draft `nodes` nodes; None: as the scheduler says.

        With 0, neither heads nor tree run. More than the tree has counts as all.
        """
        runner = self.model_runner
        # Only ever on the instance: the class keeps the runner's own method.
        vars(runner).pop("execute_model", None)
        if nodes is None:
            return
        execute = runner.execute_model

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            scheduled = scheduler_output.num_spec_tokens_to_schedule
            scheduler_output.num_spec_tokens_to_schedule = min(nodes, scheduled)
            return execute(scheduler_output, *args, **kwargs)

        runner.execute_model = execute_model
