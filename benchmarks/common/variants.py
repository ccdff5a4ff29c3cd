# SPDX-License-Identifier: Apache-2.0
"""The ways to decode that a benchmark compares, by name.

    vanilla            plain vLLM
    medusa             the tree and the batch table that lie beside the heads
    medusa:TREE        a fixed tree, e.g. medusa:chain, medusa:optimal:4, medusa:1x7x6
    vllm-medusa        vLLM's own Medusa, a chain of each head's best guess (0.32 only)
    ngram, ngram:K     vLLM's own n-gram lookup with K drafts (default 4)
    suffix             vLLM's own suffix decoding, by arctic-inference

"+compiled" behind a name runs it under torch.compile instead of eagerly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common.upstream_heads import SkipVariant, write_upstream_heads

VANILLA = "vanilla"
COMPILED = "+compiled"
# vLLM as it comes: none of its plugins, this package included.
WITHOUT_PLUGINS = {"VLLM_PLUGINS": ""}


@dataclass(frozen=True)
class Variant:
    """A name, what to add to the arguments of `LLM`, and to the environment."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What every variant is made from: heads, base model, a folder to write into."""

    heads: str
    model: Path
    folder: Path


def _speculation(kind: str, detail: str, setting: Setting) -> dict[str, Any]:
    """The speculative_config of a named way to decode."""
    if kind == "medusa":
        config: dict[str, Any] = {"method": "medusa", "model": setting.heads}
        if detail:
            config |= {"tree": detail, "num_speculative_tokens_per_batch_size": None}
        return config
    if kind == "vllm-medusa":
        written = write_upstream_heads(
            setting.heads, setting.model, setting.folder / "vllm-medusa"
        )
        return {
            "method": "medusa",
            "model": str(written.folder),
            "num_speculative_tokens": written.num_heads,
        }
    if kind == "ngram":
        return {
            "method": "ngram",
            "num_speculative_tokens": int(detail or 4),
            "prompt_lookup_max": 4,
            "prompt_lookup_min": 2,
        }
    if kind == "suffix":
        if find_spec("arctic_inference") is None:
            raise SkipVariant("arctic-inference is not installed")
        return {"method": "suffix"}
    raise ValueError(f"unknown variant {kind!r}; known:\n{__doc__}")


def make_variant(name: str, setting: Setting) -> Variant:
    """The variant called `name`.

    SkipVariant if it cannot run here, ValueError for an unknown name.
    """
    plain = name.removesuffix(COMPILED)
    kind, _, detail = plain.partition(":")
    arguments: dict[str, Any] = {"enforce_eager": not name.endswith(COMPILED)}
    if plain != VANILLA:
        arguments["speculative_config"] = _speculation(kind, detail, setting)
    return Variant(name, arguments, {} if kind == "medusa" else WITHOUT_PLUGINS)


def make_variants(
    names: list[str], setting: Setting
) -> tuple[list[Variant], dict[str, str]]:
    """All that can run, vanilla first, and why each of the others is left out."""
    variants: list[Variant] = []
    skipped: dict[str, str] = {}
    for name in dict.fromkeys([VANILLA, *names]):
        try:
            variants.append(make_variant(name, setting))
        except SkipVariant as reason:
            skipped[name] = str(reason)
    return variants, skipped


def engine_groups(variants: list[Variant], size: int) -> list[list[Variant]]:
    """Groups of at most `size` engines to hold in memory at once, each with vanilla.

    ValueError if `size` < 2: a ratio needs two engines.
    """
    if size < 2:
        raise ValueError(f"at least 2 engines must be loaded at once, got {size}")
    vanilla, others = variants[0], variants[1:]
    width = size - 1
    starts = range(0, max(len(others), 1), width)
    return [[vanilla, *others[start : start + width]] for start in starts]
