# SPDX-License-Identifier: Apache-2.0
"""From hidden states to candidate trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vllm_medusa.checkpoint import HeadsCheckpoint, load_heads
from vllm_medusa.engine_config import medusa_config, scheduled_tree
from vllm_medusa.errors import CheckpointError
from vllm_medusa.heads import MedusaHeads
from vllm_medusa.heads.draft_sampling import DraftSampling
from vllm_medusa.heads.parallel import TensorParallel
from vllm_medusa.tree import BeamTree, TokenTree

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig


@dataclass(frozen=True, slots=True)
class Proposal:
    """Candidate trees of a batch of requests.

    `tokens` [num_reqs, num_nodes] int64, best first. `parents` [num_reqs,
    num_nodes + 1] int32 holds the parent row of each row (the root's own entry is 0)
    where trees differ by request; None stands for the first nodes of the proposer's
    tree. `probs` [num_reqs, depth, draft_vocab] float32 holds the distributions that
    candidates were drawn from, by depth - 1; None if they are the heads' best tokens.
    """

    tokens: torch.Tensor
    parents: torch.Tensor | None = None
    probs: torch.Tensor | None = None


class MedusaProposer:
    """Makes tree candidates from Medusa heads.

    vLLM builds it as its `custom_class` proposer (`create_custom_proposer` of
    `vllm.v1.spec_decode.custom_class_proposer`) and calls `load_model`; the runner
    adapters call `propose`, which needs hidden states.
    """

    heads: MedusaHeads

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.vllm_config = vllm_config
        self.config = medusa_config(vllm_config)
        self.tree: TokenTree = scheduled_tree(vllm_config)
        self._beam = BeamTree.parse(self.config.tree)
        tree, device = self.tree, vllm_config.device_config.device
        # Where in the heads' guesses each node's token stands; a cut tree's nodes are
        # the first ones. Of drawn candidates the first child takes the first, for
        # only then is it certain what the next one is drawn from.
        ranks = tree.ordinals if self.is_sampling else tree.ranks
        # [num_nodes] int64 each
        self._head = torch.tensor(tree.depths[1:], device=device) - 1
        self._rank = torch.tensor(ranks[1:], device=device)
        # [num_nodes + 1] int32
        parents = torch.tensor((0, *tree.parents[1:]), dtype=torch.int32)
        self._parents = parents.to(device)

    @property
    def has_fixed_tree(self) -> bool:
        """Whether every request gets the first nodes of `tree`; else `tree` bounds the
        number of nodes and the depth of what is proposed."""
        return self._beam is None

    @property
    def is_sampling(self) -> bool:
        """Whether candidates are drawn from the heads, see `DraftSampling`."""
        return self.config.acceptance == "rejection"

    def load_model(self, target_model: nn.Module) -> None:
        """Read the heads and bind them to the base model.

        Raises:
            CheckpointError: the heads are damaged or of another model.
        """
        self._path = self.config.heads
        checkpoint = self._read(self._path)
        model = self.vllm_config.model_config
        self.heads = MedusaHeads.from_checkpoint(
            checkpoint,
            target_model,
            dtype=model.dtype,
            device=torch.device(self.vllm_config.device_config.device),
        )

    def reload(self, path: str | None, target_model: nn.Module) -> None:
        """Read the heads again, or others of the same shape, into the same memory.

        Every rank must call this. All of them take the new heads or none does.

        Args:
            path: folder, file or Hugging Face id; the last ones' by default.
            target_model: the base model.

        Raises:
            CheckpointError: the heads are missing, damaged or of another shape, on
                this rank or another one.
        """
        path = self._path if path is None else path
        checkpoint, error = None, None
        try:
            checkpoint = self._read(path)
            self.heads.check_update(checkpoint, target_model)
            self._check_token_map(checkpoint)
        # Whatever it is: the other ranks are waiting to hear of it.
        except Exception as caught:
            error = caught
        failed = torch.full((1,), float(error is not None), device=self.heads.device)
        num_failed = int(TensorParallel.current().sum(failed))
        if error is not None:
            raise error
        if num_failed:
            raise CheckpointError(
                f"{path}: not usable on {num_failed} of the other ranks, see their "
                "errors; all ranks keep the heads they had"
            )
        assert checkpoint is not None
        self.heads.update(checkpoint, target_model)
        self._path = path

    def follow(self, target_model: nn.Module) -> None:
        """Take over what the heads share with the base model, whose weights have
        changed. Every rank must call this."""
        self.heads.follow(target_model)

    def _read(self, path: str) -> HeadsCheckpoint:
        return load_heads(
            path, num_heads=self.config.num_heads, draft_vocab=self.config.draft_vocab
        )

    def _check_token_map(self, checkpoint: HeadsCheckpoint) -> None:
        """Drawn candidates are verified by their distributions over the draft
        vocabulary, which must not change between the two."""
        token_map, ids = checkpoint.tensors.get("token_map"), self.heads.draft_token_ids
        if not self.is_sampling or token_map is None or ids is None:
            return
        if not torch.equal(token_map.long().cpu(), ids.cpu()):
            raise CheckpointError(
                f"{checkpoint.path}: with acceptance=rejection a running engine takes "
                "heads of the same token_map only; restart it with these heads"
            )

    def propose(
        self,
        # [num_reqs, hidden_size], of the last accepted token, after the final norm
        hidden: torch.Tensor,
        num_nodes: int,
        sampling: DraftSampling | None = None,
        # [num_reqs] bool, requests that need `tree` itself
        is_fixed: torch.Tensor | None = None,
    ) -> Proposal:
        """Return candidate trees of `num_nodes` nodes, best first.

        Only the heads that these nodes reach are computed. `sampling` is needed if
        `is_sampling`; `is_fixed` is used if the trees differ by request.
        """
        if self._beam is not None:
            return self._search(self._beam, hidden, num_nodes, is_fixed)
        tree = self.tree.truncate(num_nodes)
        head, rank = self._head[:num_nodes], self._rank[:num_nodes]
        if not self.is_sampling:
            num_ranks = tree.max_rank + 1
            token_ids = self.heads.best_tokens(hidden, tree.max_depth, num_ranks)
            return Proposal(token_ids[:, head, rank])
        assert sampling is not None
        token_ids, probs = self.heads.sample(
            hidden, tree.max_depth, max(tree.max_children), sampling
        )
        return Proposal(token_ids[:, head, rank], probs=probs)

    def _search(
        self,
        beam: BeamTree,
        # [num_reqs, hidden_size]
        hidden: torch.Tensor,
        num_nodes: int,
        # [num_reqs] bool
        is_fixed: torch.Tensor | None,
    ) -> Proposal:
        log_probs, token_ids = self.heads.top_k(hidden, beam.depth, beam.width)
        tokens, parents = beam.build(log_probs, token_ids)
        if is_fixed is not None:
            fixed = token_ids[:, self._head, self._rank]
            tokens = torch.where(is_fixed[:, None], fixed, tokens)
            parents = torch.where(is_fixed[:, None], self._parents, parents)
        return Proposal(tokens[:, :num_nodes], parents[:, : num_nodes + 1])
