# SPDX-License-Identifier: Apache-2.0
"""A look into the worker: what it remembers of requests."""

from __future__ import annotations

from typing import Any


class SoakProbe:
    """vLLM's `worker_extension_cls` of a soak test."""

    model_runner: Any

    def soak_leftovers(self) -> dict[str, int]:
        """Count what the worker keeps of requests; all 0 in an idle engine."""
        runner = self.model_runner
        if hasattr(runner, "req_states"):
            return {"requests": len(runner.req_states.req_id_to_index)}
        budgets = runner._row_sampler.budgets
        return {
            "requests": len(runner.requests),
            "batch": runner.input_batch.num_reqs,
            "generators": len(runner.input_batch.generators),
            "drafts": len(runner._drafts),
            "traits": len(runner._traits._traits),
            "thinking_budgets": 0 if budgets is None else len(budgets._requests),
        }
