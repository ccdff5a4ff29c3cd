# SPDX-License-Identifier: Apache-2.0
"""Trees by beam search over the heads' own probabilities, per request and step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_medusa.errors import TreeError
from vllm_medusa.tree.builders import prior_accuracies
from vllm_medusa.tree.token_tree import MAX_NODES, MAX_RANKS, TokenTree

if TYPE_CHECKING:
    import torch

_TEXT = re.compile(r"beam:([0-9]{1,9})x([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class BeamTree:
    """Width and depth of a beam search: `width` nodes at every depth.

    The heads guess independently of each other, so a candidate's probability is the
    product of its tokens' probabilities. At each depth the `width` most probable
    candidates are kept; each extends one that was kept before, so together they are
    a tree.

    Raises:
        TreeError: the width is not 1 to `MAX_RANKS`, the depth not at least 1, or
            there are more than `MAX_NODES` nodes.
    """

    width: int
    depth: int

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_RANKS:
            raise TreeError(
                f"{self.text} is not possible: a beam's width goes from 1 to "
                f"{MAX_RANKS}"
            )
        if self.depth < 1 or self.width * self.depth > MAX_NODES:
            raise TreeError(
                f"{self.text} is not possible: its depth is at least 1, and a tree "
                f"has at most {MAX_NODES} nodes"
            )

    @classmethod
    def parse(cls, text: object) -> BeamTree | None:
        """Read "beam:5x3" (width, then depth); None if `text` is no beam.

        Raises:
            TreeError: the width or depth is not possible.
        """
        match = _TEXT.fullmatch(text) if isinstance(text, str) else None
        return cls(int(match[1]), int(match[2])) if match else None

    @property
    def text(self) -> str:
        """The text form."""
        return f"beam:{self.width}x{self.depth}"

    @property
    def num_nodes(self) -> int:
        """Nodes of every tree."""
        return self.width * self.depth

    def fixed_tree(self) -> TokenTree:
        """Return the tree for heads of which nothing is known: of as many nodes at
        every depth, for requests whose tree must be known before the heads run."""
        import torch

        prior = torch.tensor([prior_accuracies(self.depth, self.width)])
        ranks = torch.arange(self.width).expand(1, self.depth, -1)
        tokens, parents = self.build(prior.log(), ranks)
        return TokenTree((-1, *parents[0, 1:].tolist()), (-1, *tokens[0].tolist()))

    # (tokens [num_reqs, num_nodes] int64, parents [num_reqs, num_nodes + 1] int32)
    def build(
        self,
        # [num_reqs, depth or more, width or more] float32, best first
        log_probs: torch.Tensor,
        # the same shape, int64
        tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the trees of a batch, most probable nodes first."""
        import torch

        num_reqs, width = log_probs.shape[0], self.width
        log_probs, tokens = log_probs[..., :width], tokens[..., :width]
        # Nodes of all depths side by side; parents as columns of these, -1: the root.
        scores = [log_probs[:, 0]]
        nodes = [tokens[:, 0]]
        parents = [torch.full_like(tokens[:, 0], -1)]
        for depth in range(1, self.depth):
            # [num_reqs, width, width]
            grown = scores[-1][:, :, None] + log_probs[:, depth, None, :]
            score, place = grown.flatten(1).topk(width, dim=-1)
            scores.append(score)
            nodes.append(tokens[:, depth].gather(1, place % width))
            parents.append(place // width + (depth - 1) * width)
        # A child is never more probable than its parent, and stands behind it where
        # both are equal: the sort is stable.
        order = torch.cat(scores, 1).sort(dim=-1, descending=True, stable=True).indices
        row = torch.empty_like(order)
        rows = torch.arange(1, self.num_nodes + 1, device=order.device)
        row.scatter_(1, order, rows.expand(num_reqs, -1))
        root = row.new_zeros(num_reqs, 1)
        parent = torch.cat(parents, 1).gather(1, order)
        # Column -1 of the nodes is column 0 behind the root.
        of_node = torch.cat([root, row], 1).gather(1, parent + 1)
        return (
            torch.cat(nodes, 1).gather(1, order),
            torch.cat([root, of_node], 1).int(),
        )
