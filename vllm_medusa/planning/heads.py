# SPDX-License-Identifier: Apache-2.0
"""Bytes of heads and buffers on one rank, as `vllm_medusa.heads` shards them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_medusa.attention.triton_tiles import MAX_ROWS, PROGRAMS_PER_PROCESSOR
from vllm_medusa.checkpoint.load import read_heads_spec
from vllm_medusa.checkpoint.locate import resolve_heads
from vllm_medusa.config import MedusaConfig
from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.planning.base_model import DTYPE_BYTES, BaseModel

_SHAPE = re.compile(r"(own|shared):([0-9]{1,3})(?:x([0-9]{1,3}))?")
SHAPE_FORM = "own:K, shared:K, own:KxL or shared:KxL"
"""K heads of L residual blocks (1 by default), with vocabulary projections of their own
or the base model's: heads that need not exist yet."""

TOKEN_ID_BYTES = 8


def find_heads(config: MedusaConfig, base: BaseModel) -> tuple[HeadsSpec, Path | None]:
    """The heads that `config` names, and their folder; None for `SHAPE_FORM`.

    Raises:
        CheckpointError: they don't exist, are damaged, or don't fit the base model.
        ConfigError: more heads or tokens are asked for than there are.
    """
    if match := _SHAPE.fullmatch(config.heads):
        if config.draft_vocab is not None and config.draft_vocab > base.vocab_size:
            raise ConfigError(
                f"draft_vocab is {config.draft_vocab}, but {base.name} has "
                f"{base.vocab_size} tokens"
            )
        spec = HeadsSpec(
            num_heads=int(match[2]),
            hidden_size=base.hidden_size,
            num_layers=int(match[3] or 1),
            vocab_size=base.vocab_size,
            projection="own" if match[1] == "own" else "shared",
            draft_vocab_size=config.draft_vocab,
        )
        return spec.reduced(num_heads=config.num_heads), None
    path = resolve_heads(config.heads, config.revision)
    spec = read_heads_spec(
        path, num_heads=config.num_heads, draft_vocab=config.draft_vocab
    )
    for key, size in (
        ("hidden_size", base.hidden_size),
        ("vocab_size", base.vocab_size),
    ):
        stated = getattr(spec, key)
        if stated is not None and stated != size:
            raise CheckpointError(
                f"the heads {config.heads} have {key} {stated} but {base.name} has "
                f"{size}: use heads trained for this model"
            )
    return spec, path if path.is_dir() else path.parent


@dataclass(frozen=True)
class RankHeads:
    """Bytes of the heads on the rank that holds most of them, and what a step reads.

    Attributes:
        blocks: of all heads' blocks.
        projections: of the vocabulary projections; 0 if the LM head serves as it is.
        token_ids: of the tables from draft to base vocabulary.
        weights: numbers that a request's row is multiplied with, two operations each.
        read_bytes: weights that a step reads besides those.
        vocab_rows: draft tokens that this rank scores.
    """

    blocks: int
    projections: int
    token_ids: int
    weights: int
    read_bytes: int
    vocab_rows: int

    @property
    def total(self) -> int:
        """Bytes, as `MedusaHeads.num_bytes` counts them."""
        return self.blocks + self.projections + self.token_ids


def rank_heads(spec: HeadsSpec, base: BaseModel, ranks: int, dtype: str) -> RankHeads:
    """Bytes of the heads on rank 0 of `ranks`; no rank holds more.

    As `FusedBlocks` and `FusedProjection` place them: blocks and vocabulary are cut
    into equal parts, the last of the blocks filled up with zeros.
    """
    size = DTYPE_BYTES[dtype]
    blocks = _block_weights(spec, ranks)
    vocab = spec.draft_vocab_size or base.vocab_size
    rows = -(-vocab // ranks)
    down = 0
    if spec.projection == "low_rank":
        assert spec.rank is not None
        down = spec.num_heads * spec.rank * spec.hidden_size
        matrix = spec.num_heads * rows * spec.rank
        products = matrix + down
    elif spec.projection == "own":
        matrix = products = spec.num_heads * rows * spec.hidden_size
    else:
        # One matrix for all heads, read once and multiplied with each one's features.
        matrix = rows * spec.hidden_size
        products = spec.num_heads * matrix
    is_borrowed = spec.projection == "shared" and spec.draft_vocab_size is None
    stored = 0 if is_borrowed else matrix + down
    return RankHeads(
        blocks=blocks * size,
        projections=stored * size,
        token_ids=TOKEN_ID_BYTES * rows if spec.draft_vocab_size is not None else 0,
        weights=blocks + products,
        read_bytes=(blocks + matrix + down) * size,
        vocab_rows=rows,
    )


def _block_weights(spec: HeadsSpec, ranks: int) -> int:
    hidden = spec.hidden_size
    if spec.block == "mlp":
        assert spec.intermediate_size is not None
        part = -(-spec.intermediate_size // ranks)
        layer = 2 * part * hidden + (part + hidden if spec.block_bias else 0)
    else:
        part = -(-hidden // ranks)
        layer = part * hidden + (part if spec.block_bias else 0)
        if spec.block == "layernorm":
            layer += 2 * hidden
    return spec.num_heads * spec.num_layers * layer


@dataclass(frozen=True)
class TreeBounds:
    """What buffers depend on: nodes and depth, and whether every request has the same
    tree (no beam)."""

    num_nodes: int
    depth: int
    is_fixed: bool = True


def buffer_bytes(
    config: MedusaConfig,
    spec: HeadsSpec,
    base: BaseModel,
    tree: TreeBounds,
    max_num_seqs: int,
    dtype: str,
) -> dict[str, int]:
    """Bytes that Medusa keeps on every rank on Model Runner V2, besides weights.

    Returns:
        "inputs" of the heads and their drafts; "trees"; and "draft_probs" of rejection
        acceptance: 4 bytes x depth x draft vocabulary for each request and one more.
    """
    width = tree.num_nodes + 1
    inputs = max_num_seqs * (8 * tree.num_nodes + base.hidden_size * DTYPE_BYTES[dtype])
    # Parents and depths in 4 bytes, the ancestor mask in 1.
    if tree.is_fixed:
        trees = 2 * 4 * width + width * width
    else:
        trees = max_num_seqs * (4 * 4 * width + width * width)
        # What the proposer writes: parents, and who has a grammar.
        inputs += max_num_seqs * (4 * width + 1)
    draft_probs = 0
    if config.acceptance == "rejection":
        vocab = spec.draft_vocab_size or base.vocab_size
        draft_probs = 4 * (max_num_seqs + 1) * tree.depth * vocab
        # Temperature, seed, position and state of each request.
        inputs += max_num_seqs * (4 + 3 * 8)
    return {"inputs": inputs, "trees": trees, "draft_probs": draft_probs}


def attention_bytes(
    config: MedusaConfig,
    base: BaseModel,
    tree: TreeBounds,
    max_num_seqs: int,
    processors: int,
) -> int:
    """Work space of tree attention on a GPU, an estimate: which implementation serves a
    layer is known only once vLLM has chosen its backend."""
    if config.attention != "triton" and base.sliding_window is None:
        # Roots' positions, and FlashAttention 3's schedule: four numbers a request.
        return 4 * max_num_seqs * 5
    padded = 1 << (base.head_size - 1).bit_length()
    parts = PROGRAMS_PER_PROCESSOR * processors * MAX_ROWS * (1 + padded) * 4
    width = tree.num_nodes + 1
    return parts + 4 * width * (width + 32)


def spec_facts(spec: HeadsSpec) -> dict[str, Any]:
    """What the report says of the heads."""
    return {
        "num_heads": spec.num_heads,
        "num_layers": spec.num_layers,
        "block": spec.block,
        "projection": spec.projection,
        "draft_vocab_size": spec.draft_vocab_size,
    }
