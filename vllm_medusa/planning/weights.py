# SPDX-License-Identifier: Apache-2.0
"""Bytes of the base model's weights on one rank, as vLLM shards them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.planning.base_model import DTYPE_BYTES, BaseModel

VOCAB_PADDING = 64
"""`vllm.model_executor.layers.vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE`."""

QUANTIZATIONS = ("none", "fp8", "awq", "gptq")

_BY_OUTPUT = re.compile(r"(q|gate|up|gate_up)_proj$")
_BY_KV_HEAD = re.compile(r"(k|v)_proj$")
_BY_INPUT = re.compile(r"(o|down)_proj$")


@dataclass(frozen=True)
class RankWeights:
    """Bytes on one rank by kind, and what a step reads and multiplies.

    Attributes:
        by_kind: "attention", "mlp", "embedding", "lm_head" (0 if tied) and
            "replicated" (norms, and biases behind a sum over the ranks).
        linear_bytes: of attention and MLP, read once a step.
        lm_head_bytes: read once a step, tied or not.
        linear_weights: numbers in attention and MLP, two operations each per row.
        lm_head_weights: the same of the LM head.
    """

    by_kind: dict[str, int]
    linear_bytes: int
    lm_head_bytes: int
    linear_weights: int
    lm_head_weights: int

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.by_kind.values())


def kv_heads_per_rank(model: BaseModel, ranks: int) -> int:
    """KV heads of each rank; those of a model with fewer than ranks are replicated."""
    return max(1, model.num_kv_heads // ranks)


def check_ranks(model: BaseModel, ranks: int) -> None:
    """Refuse a number of ranks that vLLM could not split the model into.

    Raises:
        ConfigError: names the size that can't be divided.
    """
    padded = padded_vocab_size(model)
    for what, size in (
        ("attention heads", model.num_heads),
        ("the MLP's width", model.intermediate_size),
        ("the padded vocabulary", padded),
    ):
        if size % ranks:
            possible = [n for n in (1, 2, 4, 8, 16) if can_split(model, n)]
            raise ConfigError(
                f"--tp {ranks}: {model.name} can't be split over {ranks} ranks, {what} "
                f"({size:,}) can't be divided by it: use one of "
                f"{', '.join(map(str, possible))}"
            )
    kv_heads = model.num_kv_heads
    if kv_heads % ranks and ranks % kv_heads:
        raise ConfigError(
            f"--tp {ranks}: {model.name} has {kv_heads} KV heads, which {ranks} ranks "
            "can neither share nor replicate evenly"
        )


def can_split(model: BaseModel, ranks: int) -> bool:
    """Whether vLLM can split the model over `ranks` ranks."""
    sizes = (model.num_heads, model.intermediate_size, padded_vocab_size(model))
    kv_heads = model.num_kv_heads
    return not any(size % ranks for size in sizes) and not (
        kv_heads % ranks and ranks % kv_heads
    )


def padded_vocab_size(model: BaseModel) -> int:
    """Rows of the embedding and of the LM head over all ranks."""
    return -(-model.vocab_size // VOCAB_PADDING) * VOCAB_PADDING


def rank_weights(
    model: BaseModel, ranks: int, dtype: str, quantization: str | None
) -> RankWeights:
    """Bytes of the base model on one of `ranks` ranks, all of which are alike.

    Args:
        model: its shapes.
        ranks: tensor-parallel size.
        dtype: of everything but quantised layers.
        quantization: of attention and MLP: "fp8" 1 byte a weight; "awq" and "gptq"
            half a byte, with a scale in 16 bits and a zero point in 4 per group; None.

    Raises:
        ConfigError: the model can't be split so.
        UnsupportedError: a tensor of which a plan doesn't know how vLLM shards it.
    """
    check_ranks(model, ranks)
    tally = _Tally(model, ranks, DTYPE_BYTES[dtype], quantization)
    for name, shape in model.shapes.items():
        tally.add(name, shape)
    size = padded_vocab_size(model) // ranks * model.hidden_size
    return RankWeights(
        by_kind=tally.by_kind,
        linear_bytes=tally.by_kind["attention"] + tally.by_kind["mlp"],
        lm_head_bytes=size * DTYPE_BYTES[dtype],
        linear_weights=tally.linear_weights,
        lm_head_weights=size,
    )


@dataclass
class _Tally:
    model: BaseModel
    ranks: int
    dtype_bytes: int
    quantization: str | None
    by_kind: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("attention", "mlp", "embedding", "lm_head", "replicated"), 0
        )
    )
    linear_weights: int = 0

    def add(self, name: str, shape: tuple[int, ...]) -> None:
        """Count one tensor of the checkpoint."""
        module, _, part = name.rpartition(".")
        if module in ("embed_tokens", "lm_head") and part == "weight":
            if module == "lm_head" and self.model.is_tied:
                return
            rows = padded_vocab_size(self.model) // self.ranks
            kind = "lm_head" if module == "lm_head" else "embedding"
            self.by_kind[kind] += rows * shape[1] * self.dtype_bytes
            return
        if re.search(r"(^|_|\.)(\w*norm)$", module):
            self.by_kind["replicated"] += math.prod(shape) * self.dtype_bytes
            return
        kind = "attention" if ".self_attn." in f".{module}" else "mlp"
        share = self._share(module, part)
        if share is None:
            raise UnsupportedError(
                f"{self.model.name}: a plan does not know how vLLM shards {name!r}"
            )
        if part == "bias":
            if share == "whole":
                kind, count = "replicated", shape[0]
            else:
                count = self._part(shape[0], share)
            self.by_kind[kind] += count * self.dtype_bytes
            return
        numbers = self._part(math.prod(shape), share)
        self.linear_weights += numbers
        self.by_kind[kind] += self._bytes(numbers)

    def _share(self, module: str, part: str) -> str | None:
        """How a linear layer's `part` is shared: by rank, by KV head, or not."""
        if part not in ("weight", "bias"):
            return None
        if _BY_OUTPUT.search(module):
            return "rank"
        if _BY_KV_HEAD.search(module):
            return "kv_head"
        if _BY_INPUT.search(module):
            return "rank" if part == "weight" else "whole"
        return None

    def _part(self, count: int, share: str) -> int:
        if share == "rank":
            return count // self.ranks
        heads = kv_heads_per_rank(self.model, self.ranks)
        return count // self.model.num_kv_heads * heads

    def _bytes(self, numbers: int) -> int:
        if self.quantization is None:
            return numbers * self.dtype_bytes
        if self.quantization == "fp8":
            return numbers
        groups = numbers / self.model.quantization_group
        return math.ceil(numbers * 0.5 + groups * 2.5)
