# SPDX-License-Identifier: Apache-2.0
"""From hidden states to candidate trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vllm_medusa.checkpoint import load_heads
from vllm_medusa.engine_config import medusa_config
from vllm_medusa.heads import MedusaHeads
from vllm_medusa.tree import TokenTree, parse_tree

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig


@dataclass(frozen=True, slots=True)
class Proposal:
    """Candidate trees of a batch of requests.

    `tokens` [num_reqs, num_nodes] int64, best first. `parents` [num_reqs,
    num_nodes + 1] int32 holds the parent row of each row (the root's own entry is 0)
    where trees differ by request; None stands for the first nodes of the proposer's
    tree.
    """

    tokens: torch.Tensor
    parents: torch.Tensor | None = None


class MedusaProposer:
    """Makes tree candidates from Medusa heads.

    vLLM builds it as its `custom_class` proposer (`create_custom_proposer` of
    `vllm.v1.spec_decode.custom_class_proposer`) and calls `load_model`; the runner
    adapters call `propose`, which needs hidden states.
    """

    heads: MedusaHeads
    has_fixed_tree = True
    """Whether every request gets the first nodes of `tree`; else `tree` bounds the
    number of nodes and the depth of what is proposed."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.vllm_config = vllm_config
        self.config = medusa_config(vllm_config)
        assert self.config.tree is not None, "prepare_engine_args resolves the tree"
        self.tree: TokenTree = parse_tree(
            self.config.tree, num_heads=self.config.num_heads
        )
        # Where in the heads' guesses each node's token stands; a cut tree's nodes are
        # the first ones. [num_nodes] int64 each
        device = vllm_config.device_config.device
        self._head = torch.tensor(self.tree.depths[1:], device=device) - 1
        self._rank = torch.tensor(self.tree.ranks[1:], device=device)

    def load_model(self, target_model: nn.Module) -> None:
        """Read the heads and bind them to the base model.

        Raises:
            CheckpointError: the heads are damaged or of another model.
        """
        checkpoint = load_heads(
            self.config.heads,
            num_heads=self.config.num_heads,
            draft_vocab=self.config.draft_vocab,
        )
        model = self.vllm_config.model_config
        self.heads = MedusaHeads.from_checkpoint(
            checkpoint,
            target_model,
            dtype=model.dtype,
            device=torch.device(self.vllm_config.device_config.device),
        )

    def propose(
        self,
        # [num_reqs, hidden_size], of the last accepted token, after the final norm
        hidden: torch.Tensor,
        num_nodes: int,
    ) -> Proposal:
        """Return the tokens of the tree's first `num_nodes` nodes, best first.

        Only the heads that these nodes reach are computed.
        """
        tree = self.tree.truncate(num_nodes)
        token_ids = self.heads.best_tokens(hidden, tree.max_depth, tree.max_rank + 1)
        head, rank = self._head[:num_nodes], self._rank[:num_nodes]
        return Proposal(token_ids[:, head, rank])
