# SPDX-License-Identifier: Apache-2.0
"""What a set of Medusa heads looks like: sizes, block kind, projection kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from vllm_medusa.errors import CheckpointError, ConfigError

BlockKind = Literal["residual", "mlp", "layernorm"]
ProjectionKind = Literal["shared", "own", "single", "low_rank"]

# Larger than any published heads; a checkpoint beyond them is damaged or hostile.
MAX_HEADS = 64
MAX_LAYERS = 64


@dataclass(frozen=True)
class HeadsSpec:
    """Architecture of a set of Medusa heads (arXiv 2401.10774, section 2.1.1).

    Head k reads the hidden state of token t after the final norm and guesses
    token t + k + 2 (k = 0 .. num_heads - 1).

    Attributes:
        num_heads: heads, K.
        hidden_size: width of the base model's hidden state, H.
        num_layers: blocks per head, L.
        vocab_size: base vocabulary, V; None if neither tensors nor config tell.
        block: "residual" x + SiLU(Wx + b); "mlp" x + W2 SiLU(W1 x + b1) + b2;
            "layernorm" SiLU(LayerNorm(Wx + b)), without a residual.
        intermediate_size: inner width of an "mlp" block, M; None otherwise.
        block_bias: whether the blocks' linear layers have a bias.
        projection: "shared" the base model's LM head; "own" one matrix per head;
            "single" one matrix of the checkpoint for all heads; "low_rank" per
            head up [Vd, r] @ down [r, H].
        rank: r of a "low_rank" projection; None otherwise.
        draft_vocab_size: Vd, number of tokens the heads can guess, if `token_map`
            reduces the vocabulary; None if the heads guess over all V tokens.

    Raises:
        ConfigError: a size is not positive or contradicts the kinds.
    """

    num_heads: int
    hidden_size: int
    num_layers: int = 1
    vocab_size: int | None = None
    block: BlockKind = "residual"
    intermediate_size: int | None = None
    block_bias: bool = True
    projection: ProjectionKind = "shared"
    rank: int | None = None
    draft_vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.block not in get_args(BlockKind):
            raise ConfigError(
                f"unknown block {self.block!r}; choose from {get_args(BlockKind)}"
            )
        if self.projection not in get_args(ProjectionKind):
            raise ConfigError(
                f"unknown projection {self.projection!r}; choose from "
                f"{get_args(ProjectionKind)}"
            )
        for name in (
            "num_heads",
            "hidden_size",
            "num_layers",
            "vocab_size",
            "intermediate_size",
            "rank",
            "draft_vocab_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name, limit in (("num_heads", MAX_HEADS), ("num_layers", MAX_LAYERS)):
            if getattr(self, name) > limit:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; at most {limit} are supported"
                )
        if (self.block == "mlp") != (self.intermediate_size is not None):
            raise ConfigError(
                "intermediate_size belongs to block 'mlp', and only there"
            )
        if (self.projection == "low_rank") != (self.rank is not None):
            raise ConfigError("rank belongs to projection 'low_rank', and only there")
        if (
            self.vocab_size is not None
            and self.draft_vocab_size is not None
            and self.draft_vocab_size > self.vocab_size
        ):
            raise ConfigError(
                f"draft vocabulary of {self.draft_vocab_size} tokens is larger than "
                f"the base vocabulary of {self.vocab_size}"
            )

    @property
    def projected_vocab_size(self) -> int | None:
        """Number of tokens each head scores: Vd, or V without a token_map."""
        if self.draft_vocab_size is not None:
            return self.draft_vocab_size
        return self.vocab_size

    @property
    def num_parameters(self) -> int:
        """Parameters stored in the checkpoint, without token_map."""
        shapes = self.tensor_shapes()
        return sum(
            math.prod(shape) for name, shape in shapes.items() if name != "token_map"
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical tensor names and their shapes; exactly what a file must hold.

        Raises:
            CheckpointError: the projection is stored but the vocabulary is unknown.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for head in range(self.num_heads):
            for layer in range(self.num_layers):
                shapes |= self._layer_shapes(head, layer)
        shapes |= self._projection_shapes()
        if self.draft_vocab_size is not None:
            shapes["token_map"] = (self.draft_vocab_size,)
        return shapes

    def _layer_shapes(self, head: int, layer: int) -> dict[str, tuple[int, ...]]:
        hidden = self.hidden_size
        name = f"blocks.{head}.layers.{layer}"
        if self.block == "mlp":
            assert self.intermediate_size is not None
            linears = {
                f"{name}.up": (self.intermediate_size, hidden),
                f"{name}.down": (hidden, self.intermediate_size),
            }
        else:
            linears = {name: (hidden, hidden)}
        shapes: dict[str, tuple[int, ...]] = {}
        for linear, shape in linears.items():
            shapes[f"{linear}.weight"] = shape
            if self.block_bias:
                shapes[f"{linear}.bias"] = shape[:1]
        if self.block == "layernorm":
            norm = f"blocks.{head}.norms.{layer}"
            shapes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
        return shapes

    def _projection_shapes(self) -> dict[str, tuple[int, ...]]:
        if self.projection == "shared":
            return {}
        vocab, hidden = self.projected_vocab_size, self.hidden_size
        if vocab is None:
            raise CheckpointError(
                f"projection {self.projection!r} needs a vocabulary size"
            )
        if self.projection == "single":
            return {"lm_head.weight": (vocab, hidden)}
        shapes: dict[str, tuple[int, ...]] = {}
        for head in range(self.num_heads):
            if self.rank is None:
                shapes[f"lm_heads.{head}.weight"] = (vocab, hidden)
            else:
                shapes[f"lm_heads.{head}.down.weight"] = (self.rank, hidden)
                shapes[f"lm_heads.{head}.up.weight"] = (vocab, self.rank)
        return shapes

    def reduced(
        self, *, num_heads: int | None = None, draft_vocab: int | None = None
    ) -> HeadsSpec:
        """The spec of the first `num_heads` heads and `draft_vocab` mapped tokens.

        Raises:
            ConfigError: more is asked for than there is, or nothing.
        """
        changes: dict[str, int] = {}
        if num_heads is not None:
            if not 1 <= num_heads <= self.num_heads:
                raise ConfigError(
                    f"num_heads is {num_heads}, but the checkpoint holds "
                    f"{self.num_heads} heads: choose 1 to {self.num_heads}"
                )
            changes["num_heads"] = num_heads
        if draft_vocab is not None:
            if self.draft_vocab_size is None:
                raise ConfigError(
                    f"draft_vocab is {draft_vocab}, but the checkpoint has no "
                    "token_map that orders the tokens: leave draft_vocab out"
                )
            if not 1 <= draft_vocab <= self.draft_vocab_size:
                raise ConfigError(
                    f"draft_vocab is {draft_vocab}, but the checkpoint's token_map "
                    f"holds {self.draft_vocab_size} tokens: choose 1 to "
                    f"{self.draft_vocab_size}"
                )
            changes["draft_vocab_size"] = draft_vocab
        return replace(self, **changes)  # type: ignore[arg-type]
