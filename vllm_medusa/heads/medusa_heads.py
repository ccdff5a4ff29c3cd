# SPDX-License-Identifier: Apache-2.0
"""Medusa heads as the engine runs them: few, fused, tensor-parallel products."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from vllm_medusa.checkpoint import HeadsCheckpoint
from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.heads.blocks import FusedBlocks
from vllm_medusa.heads.draft_sampling import DraftSampling, draw_drafts
from vllm_medusa.heads.lm_head import find_lm_head, lm_head_shard
from vllm_medusa.heads.parallel import TensorParallel
from vllm_medusa.heads.projection import FusedProjection, stored_shard
from vllm_medusa.heads.spec import HeadsSpec


class MedusaHeads(nn.Module):
    """All heads of a checkpoint on one device (arXiv 2401.10774, section 2.1).

    One matrix product for layer 0 of all heads' blocks, one batched product for
    each further layer, one product for all vocabulary projections. A model's logit
    scale or soft-cap is not applied: it doesn't change the order of the tokens, and
    the heads were trained without it.

    Attributes:
        spec: the heads' architecture.
        vocab_size: number of tokens the heads can guess.
    """

    def __init__(
        self,
        spec: HeadsSpec,
        blocks: FusedBlocks,
        projection: FusedProjection,
        vocab_size: int,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.vocab_size = spec.draft_vocab_size or vocab_size
        self.blocks = blocks
        self.projection = projection

    @property
    def num_bytes(self) -> int:
        """Memory of the weights on this rank; a shared LM head is not counted."""
        blocks = sum(buffer.nbytes for buffer in self.blocks.buffers())
        return blocks + self.projection.num_bytes

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: HeadsCheckpoint,
        base_model: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> MedusaHeads:
        """Place a checkpoint's heads beside the base model.

        Args:
            checkpoint: from `load_heads`.
            base_model: the vLLM model, loaded; its LM head is shared if the
                checkpoint has no projection.
            dtype: of weights and products; the base LM head's by default.
            device: the base LM head's by default.

        Raises:
            CheckpointError: the heads' hidden size or vocabulary is not the model's.
            UnsupportedError: the model has no LM head that can be shared.
        """
        spec = checkpoint.spec
        lm_head = find_lm_head(base_model)
        _check_fit(checkpoint, lm_head, type(base_model).__name__)
        weight = lm_head.weight
        if dtype is None:
            dtype = weight.dtype if weight.is_floating_point() else torch.float32
        device = weight.device if device is None else torch.device(device)
        parallel = TensorParallel.current()
        if spec.projection == "shared":
            shard = lm_head_shard(
                lm_head,
                checkpoint.tensors.get("token_map"),
                parallel,
                dtype=dtype,
                device=device,
            )
            projection = FusedProjection(shard, parallel)
        else:
            projection = FusedProjection.from_tensors(
                spec, checkpoint.tensors, parallel, dtype=dtype, device=device
            )
        blocks = FusedBlocks(
            spec, checkpoint.tensors, parallel, dtype=dtype, device=device
        )
        return cls(spec, blocks, projection, lm_head.org_vocab_size)

    def check_update(self, checkpoint: HeadsCheckpoint, base_model: nn.Module) -> None:
        """Refuse what `update` can't take.

        Raises:
            CheckpointError: the heads are of another shape than these, or do not fit
                the model.
        """
        lm_head = find_lm_head(base_model)
        _check_fit(checkpoint, lm_head, type(base_model).__name__)
        # A vocabulary size that only one of the two tells has been compared above.
        found = replace(checkpoint.spec, vocab_size=self.spec.vocab_size)
        if found != self.spec:
            raise CheckpointError(
                f"{checkpoint.path}: a running engine takes heads of the shape that it "
                f"was started with, {self.spec}, not {checkpoint.spec}: restart it "
                "with these heads"
            )

    def update(self, checkpoint: HeadsCheckpoint, base_model: nn.Module) -> None:
        """Take the weights of another checkpoint, for which `check_update` has passed.

        They are written in place, since captured graphs know the addresses. Of several
        ranks all must call this.
        """
        self.blocks.update(checkpoint.tensors)
        if self.spec.projection == "shared":
            self._share(base_model, checkpoint.tensors.get("token_map"))
            return
        shard, down = stored_shard(
            self.spec,
            checkpoint.tensors,
            self.projection.parallel,
            dtype=self.dtype,
            device=torch.device("cpu"),
        )
        self.projection.update(shard, down)

    def follow(self, base_model: nn.Module) -> None:
        """Take over what is shared with the base model, whose weights have changed.

        Of several ranks all must call this.
        """
        if self.spec.projection == "shared":
            is_reduced = self.spec.draft_vocab_size is not None
            self._share(base_model, self.draft_token_ids if is_reduced else None)

    def _share(
        self,
        base_model: nn.Module,
        # int64 [draft_vocab] or None
        token_map: torch.Tensor | None,
    ) -> None:
        shard = lm_head_shard(
            find_lm_head(base_model),
            token_map,
            self.projection.parallel,
            dtype=self.dtype,
            device=self.device,
        )
        self.projection.update(shard)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and products."""
        return next(self.blocks.buffers()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.blocks.buffers()).device

    # hidden: [batch, hidden_size], last hidden state after the final norm
    def top_k(
        self, hidden: torch.Tensor, num_heads: int, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best tokens of each of the first `num_heads` heads, best first.

        Only those heads are computed. Log-probabilities are over the draft
        vocabulary.

        Returns:
            float32 log-probabilities and int64 token ids of the base vocabulary,
            both [batch, num_heads, k].

        Raises:
            ConfigError: more heads or tokens are asked for than there are.
        """
        return self.projection.top_k(self._features(hidden, num_heads, k), k)

    # hidden: [batch, hidden_size], last hidden state after the final norm
    def best_tokens(self, hidden: torch.Tensor, num_heads: int, k: int) -> torch.Tensor:
        """The token ids of `top_k`, cheaper: it computes no probabilities.

        Returns:
            int64 [batch, num_heads, k].

        Raises:
            ConfigError: more heads or tokens are asked for than there are.
        """
        return self.projection.best_tokens(self._features(hidden, num_heads, k), k)

    @property
    def draft_token_ids(self) -> torch.Tensor | None:
        """Base token id of each column of a draft distribution, int64 [draft_vocab];
        None if column i is token i."""
        return self.projection.draft_token_ids

    # hidden: [batch, hidden_size], last hidden state after the final norm
    def sample(
        self, hidden: torch.Tensor, num_heads: int, k: int, sampling: DraftSampling
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw k different tokens from each of the first `num_heads` heads.

        Returns:
            int64 token ids of the base vocabulary in the order of the draw, [batch,
            num_heads, k], and the distributions they were drawn from, float32 [batch,
            num_heads, draft_vocab].

        Raises:
            ConfigError: more heads or tokens are asked for than there are.
        """
        features = self._features(hidden, num_heads, k)
        drawn, probs = draw_drafts(self.projection.draft_logits(features), k, sampling)
        ids = self.draft_token_ids
        return drawn if ids is None else ids[drawn], probs

    # [num_heads, batch, hidden_size]
    def _features(self, hidden: torch.Tensor, num_heads: int, k: int) -> torch.Tensor:
        if not 1 <= num_heads <= self.spec.num_heads:
            raise ConfigError(
                f"num_heads is {num_heads}, but there are {self.spec.num_heads} heads"
            )
        if not 1 <= k <= self.vocab_size:
            raise ConfigError(
                f"k is {k}, but the heads guess over {self.vocab_size} tokens"
            )
        return self.blocks(hidden, num_heads)


def _check_fit(
    checkpoint: HeadsCheckpoint, lm_head: VocabParallelEmbedding, model: str
) -> None:
    """Refuse heads of another model.

    Raises:
        CheckpointError: the heads' hidden size or vocabulary is not the model's.
    """
    spec, where = checkpoint.spec, str(checkpoint.path)
    if spec.hidden_size != lm_head.embedding_dim:
        raise CheckpointError(
            f"{where}: heads of hidden size {spec.hidden_size} cannot read {model} "
            f"with hidden size {lm_head.embedding_dim}; use heads trained for this "
            "model"
        )
    vocab_size = lm_head.org_vocab_size
    if spec.vocab_size is not None and spec.vocab_size != vocab_size:
        raise CheckpointError(
            f"{where}: heads for a vocabulary of {spec.vocab_size} tokens do not fit "
            f"{model} with {vocab_size}; use heads trained for this model"
        )
    token_map = checkpoint.tensors.get("token_map")
    if token_map is not None and int(token_map.max()) >= vocab_size:
        raise CheckpointError(
            f"{where}: token_map holds token {int(token_map.max())}, but {model} has "
            f"{vocab_size} tokens"
        )
