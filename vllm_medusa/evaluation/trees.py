# SPDX-License-Identifier: Apache-2.0
"""A worker extension that changes the tree of a running engine.

An engine takes half a minute to start, and one for every tree would take longer than
the measurement; besides, what two processes happen to get of a machine would differ.
"""

from __future__ import annotations

import copy
from typing import Any

EXTENSION = "vllm_medusa.evaluation.trees.ChangingTrees"


class ChangingTrees:
    """Mixed into the worker class by vLLM (`WorkerWrapperBase.init_worker`); for
    Model Runner V1, whose scheduler takes as many drafts as the runner returns."""

    model_runner: Any

    def use_tree(
        self, tree: str | list[list[int]], num_heads: int | None, num_nodes: int
    ) -> None:
        """From the next request on, propose the first `num_nodes` nodes of `tree`.

        No request may be running. `tree` is a list of paths or the text of a beam
        search, of at most as many nodes as the engine was started with; `num_heads`
        as in MedusaConfig.
        """
        from vllm_medusa.engine_config import OPTIONS_KEY
        from vllm_medusa.propose import MedusaProposer
        from vllm_medusa.runner.v1.layouts import Layouts

        runner = self.model_runner
        additional = runner.vllm_config.additional_config
        options = additional[OPTIONS_KEY]
        fields = options["config"] | {"tree": tree, "num_heads": num_heads}
        changed = copy.copy(runner.vllm_config)
        changed.additional_config = additional | {
            OPTIONS_KEY: options | {"config": fields}
        }
        drafter = MedusaProposer(changed)
        drafter.load_model(runner.get_model())
        runner.drafter = drafter
        runner._layouts = Layouts(drafter.tree, drafter.has_fixed_tree)
        self._cut(num_nodes)

    def _cut(self, num_nodes: int) -> None:
        """Draft at most `num_nodes` nodes, of which the scheduler does not know: on its
        way into the runner, the number that it sends with every step is lowered."""
        runner = self.model_runner
        # Only ever on the instance: the class keeps the runner's own method.
        vars(runner).pop("execute_model", None)
        execute = runner.execute_model

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            scheduled = scheduler_output.num_spec_tokens_to_schedule
            scheduler_output.num_spec_tokens_to_schedule = min(num_nodes, scheduled)
            return execute(scheduler_output, *args, **kwargs)

        runner.execute_model = execute_model
