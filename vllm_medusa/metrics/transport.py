# SPDX-License-Identifier: Apache-2.0
"""How Medusa's statistics get from the engine core to the front end: with vLLM's."""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutputs

from vllm_medusa.metrics.stats import MedusaSchedulerStats


def install() -> None:
    """Let front ends decode `MedusaSchedulerStats` where they find them.

    msgspec looks a field's type up when the first decoder of its struct is made, which
    in vLLM is when a front end connects to its engine core. Statistics of engines
    without Medusa decode as before, into the subclass, whose own field stays None. An
    engine core that runs in the front end's process encodes nothing.
    """
    EngineCoreOutputs.__annotations__["scheduler_stats"] = MedusaSchedulerStats | None
