# SPDX-License-Identifier: Apache-2.0
"""What a model runner with Medusa tells its worker."""

from __future__ import annotations

from typing import Any

from vllm_medusa import timing
from vllm_medusa.runner.stats import MedusaStats


class MedusaReport:
    """Mixed into the model runners.

    Attributes:
        stats: counters on the host; set by the runner.
    """

    stats: MedusaStats

    def medusa_stats(self) -> dict[str, Any]:
        """Return the counters as JSON has them."""
        return self.stats.as_dict()

    def reset_medusa_stats(self) -> None:
        """Forget what was counted, such as the steps of vLLM's warm-up."""
        self.stats.reset()
        timing.reset_samples()

    def medusa_memory(self) -> dict[str, int]:
        """Return bytes on the device: "heads" of their weights, "buffers" besides."""
        raise NotImplementedError
