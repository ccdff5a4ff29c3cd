# SPDX-License-Identifier: Apache-2.0
"""All heads' vocabulary projections in one product, and the best tokens of each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from vllm_medusa.heads.linear import FixedLinear, Product
from vllm_medusa.heads.lm_head import VocabularyShard
from vllm_medusa.heads.parallel import TensorParallel
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.kernels.merge_top_k import merge_top_k, pack_top_k

# Rows of this many tokens are scanned for their maximum before the top-k on CPU.
_CHUNK = 64


class FusedProjection(nn.Module):
    """Features of all heads -> the k best tokens of each, over a sharded vocabulary.

    Attributes:
        weight: [num_heads, rows, in] if every head has its own matrix, else None;
            `rows` is this rank's part of the (draft) vocabulary.
        down: [num_heads, rank, hidden_size] of a low-rank projection, replicated.
        token_ids: int64 [rows], base token id of each row; None if consecutive.
        num_bytes: memory besides what is the base model's own.
        draft_token_ids: int64 [draft_vocab], base token id of each column of
            `draft_logits`; None if column i is token i.
    """

    weight: torch.Tensor | None
    down: torch.Tensor | None
    token_ids: torch.Tensor | None
    draft_token_ids: torch.Tensor | None
    _columns: torch.Tensor | None

    def __init__(
        self,
        shard: VocabularyShard,
        parallel: TensorParallel,
        down: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.parallel = parallel
        self.start = shard.start
        own = shard.weight.dim() == 3
        tensors = (shard.token_ids, down, *_own_weights(shard))
        self.num_bytes = sum(t.nbytes for t in tensors if t is not None)
        self.register_buffer("weight", shard.weight if own else None, persistent=False)
        self._product: Product | None = shard.product
        if self._product is None and not own:
            # It may pack the matrix, so nothing else refers to that.
            self._product = FixedLinear(shard.weight, shard.bias)
        self.register_buffer("token_ids", shard.token_ids, persistent=False)
        draft_token_ids = columns = None
        if parallel.size == 1:
            draft_token_ids = shard.token_ids
        else:
            columns = self._gathered_columns(shard)
            draft_token_ids = self._gathered_token_ids(shard, columns)
        self.register_buffer("draft_token_ids", draft_token_ids, persistent=False)
        # [draft_vocab] int64, or None where nothing is gathered
        self.register_buffer("_columns", columns, persistent=False)
        self.register_buffer("down", down, persistent=False)

    @classmethod
    def from_tensors(
        cls,
        spec: HeadsSpec,
        tensors: Mapping[str, torch.Tensor],
        parallel: TensorParallel,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> FusedProjection:
        """The projection stored in a checkpoint ("own", "single", "low_rank")."""
        shard, down = stored_shard(spec, tensors, parallel, dtype=dtype, device=device)
        return cls(shard, parallel, down)

    @torch.no_grad()
    def update(self, shard: VocabularyShard, down: torch.Tensor | None = None) -> None:
        """Take other values of the same shapes, which may lie on any device.

        They are written in place, since captured graphs know the addresses. What is
        the base model's own follows it anyway. Of several ranks all must call this.
        """
        if shard.token_ids is not None:
            assert self.token_ids is not None and self.draft_token_ids is not None
            self.token_ids.copy_(shard.token_ids)
            if self._columns is not None:
                ids = self._gather(self.token_ids.float(), self._columns)
                self.draft_token_ids.copy_(ids.long())
        if self.down is not None:
            assert down is not None
            self.down.copy_(down)
        if self.weight is not None:
            self.weight.copy_(shard.weight)
        elif isinstance(self._product, FixedLinear):
            self._product.update(shard.weight, shard.bias)

    # features: [num_heads, batch, hidden_size]
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """This rank's logits, [num_heads, batch, rows]."""
        num_heads = features.shape[0]
        if self._product is not None:
            return self._product(features)
        assert self.weight is not None
        if self.down is not None:
            features = torch.bmm(features, self.down[:num_heads].transpose(1, 2))
        return torch.bmm(features, self.weight[:num_heads].transpose(1, 2))

    # features: [num_heads, batch, hidden_size]
    def draft_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits over the vocabulary of all ranks, float32 [batch, num_heads,
        draft_vocab]."""
        logits = self.logits(features).float().transpose(0, 1)
        return logits if self._columns is None else self._gather(logits, self._columns)

    # [..., draft_vocab]
    def _gather(
        self,
        # [..., rows]
        values: torch.Tensor,
        columns: torch.Tensor,
    ) -> torch.Tensor:
        """Values of all ranks' rows; the last ranks' parts may be shorter."""
        padded = F.pad(values, (0, self._padded_rows - values.shape[-1]))
        length = self.parallel.size * self._padded_rows
        return self.parallel.gather(padded, length).index_select(-1, columns)

    # [draft_vocab] int64
    def _gathered_columns(self, shard: VocabularyShard) -> torch.Tensor:
        """Where the rows of all ranks stand among what is gathered, padding aside."""
        device = shard.weight.device
        # float32 holds every number exactly; some back ends gather nothing else.
        count = torch.tensor([float(shard.weight.shape[-2])], device=device)
        counts = self.parallel.stack(count).flatten().long().tolist()
        self._padded_rows = max(counts)
        return torch.cat(
            [
                rank * self._padded_rows + torch.arange(count, device=device)
                for rank, count in enumerate(counts)
            ]
        )

    # [draft_vocab] int64
    def _gathered_token_ids(
        self, shard: VocabularyShard, columns: torch.Tensor
    ) -> torch.Tensor:
        ids = shard.token_ids
        if ids is None:
            rows = torch.arange(shard.weight.shape[-2], device=shard.weight.device)
            ids = shard.start + rows
        return self._gather(ids.float(), columns).long()

    # features: [num_heads, batch, hidden_size]
    def top_k(
        self, features: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (float32) and base token ids, [batch, num_heads, k]."""
        logits = self.logits(features).float()
        best, ids = self._best(logits, k)
        totals = logits.logsumexp(dim=-1).transpose(0, 1)
        if self.parallel.size == 1:
            return best - totals.unsqueeze(-1), ids
        return self._merge(best, ids, k, totals)

    # features: [num_heads, batch, hidden_size]
    def best_tokens(self, features: torch.Tensor, k: int) -> torch.Tensor:
        """The base token ids of `top_k` alone, without a pass for the probabilities."""
        best, ids = self._best(self.logits(features), k)
        return ids if self.parallel.size == 1 else self._merge(best, ids, k)[1]

    # logits: [num_heads, batch, rows]
    def _best(self, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's best logits and base token ids, [batch, num_heads, <= k]."""
        best, rows = best_rows(logits, min(k, logits.shape[-1]))
        ids = rows + self.start if self.token_ids is None else self.token_ids[rows]
        return best.transpose(0, 1), ids.transpose(0, 1)

    def _merge(
        self,
        # [batch, num_heads, <= k] each
        best: torch.Tensor,
        ids: torch.Tensor,
        k: int,
        # [batch, num_heads]
        totals: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of all ranks, in one all-gather and one launch."""
        packed = pack_top_k(best, ids, k, totals)
        return merge_top_k(self.parallel.stack(packed), k)


def stored_shard(
    spec: HeadsSpec,
    tensors: Mapping[str, torch.Tensor],
    parallel: TensorParallel,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[VocabularyShard, torch.Tensor | None]:
    """This rank's part of the projections in a checkpoint.

    Returns:
        the shard, and `FusedProjection.down`.
    """
    vocab = spec.projected_vocab_size
    assert vocab is not None
    first, last = parallel.bounds(vocab)

    def rows(name: str) -> torch.Tensor:
        return tensors[name][first:last].to(device, dtype)

    down = None
    if spec.projection == "single":
        weight = rows("lm_head.weight").clone()
    else:
        part = "weight" if spec.rank is None else "up.weight"
        heads = [f"lm_heads.{head}" for head in range(spec.num_heads)]
        weight = torch.stack([rows(f"{head}.{part}") for head in heads])
        if spec.rank is not None:
            down = torch.stack(
                [tensors[f"{head}.down.weight"].to(device, dtype) for head in heads]
            )
    token_ids = None
    if spec.draft_vocab_size is not None:
        # Copied: the checkpoint's tensors may be views of the file itself.
        token_ids = tensors["token_map"][first:last].to(device, copy=True)
    return VocabularyShard(weight, None, token_ids, first), down


def _own_weights(shard: VocabularyShard) -> tuple[torch.Tensor | None, ...]:
    """The shard's matrix and bias, unless they are the base model's."""
    return () if shard.product is not None else (shard.weight, shard.bias)


# logits: [..., rows]
def best_rows(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`logits.topk(k)`, several times faster on a CPU.

    The k best lie in the k chunks with the largest maxima, so a vectorised pass for
    the maxima leaves only k chunks to sort.
    """
    rows = logits.shape[-1]
    chunks = rows // _CHUNK
    if logits.device.type != "cpu" or rows % _CHUNK or chunks < 2 * k:
        return logits.topk(k, dim=-1)
    chunked = logits.unflatten(-1, (chunks, _CHUNK))
    picked = chunked.amax(dim=-1).topk(k, dim=-1, sorted=False).indices
    index = picked.unsqueeze(-1).expand(*picked.shape, _CHUNK)
    values, place = chunked.gather(-2, index).flatten(-2).topk(k, dim=-1)
    chunk = picked.gather(-1, place // _CHUNK)
    return values, chunk * _CHUNK + place % _CHUNK
