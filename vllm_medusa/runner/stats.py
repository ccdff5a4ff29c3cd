# SPDX-License-Identifier: Apache-2.0
"""What a runner counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class MedusaStats:
    """Counters of one worker since it started.

    `steps` engine steps with at least one tree, `trees` trees verified, `nodes`
    nodes verified, `accepted` nodes accepted, `moved` rows moved in the KV cache.
    Asynchronous scheduling runs one step more for a request that has ended; it counts
    too.
    """

    steps: int = 0
    trees: int = 0
    nodes: int = 0
    accepted: int = 0
    moved: int = 0

    def count(self, num_trees: int, num_nodes: int, num_accepted: int) -> None:
        """Count a step with trees."""
        self.steps += 1
        self.trees += num_trees
        self.nodes += num_nodes
        self.accepted += num_accepted

    def reset(self) -> None:
        """Count from zero again."""
        vars(self).update(vars(MedusaStats()))

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as JSON has them."""
        return dict(vars(self))
