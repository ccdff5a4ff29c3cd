# SPDX-License-Identifier: Apache-2.0
"""The batches that tree attention is tested with.

`SMALL` is meant for Triton's interpreter, `LARGE` for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a batch looks like; `make_case` draws the rest."""

    rows: tuple[int, ...]
    """Of each request, root included; 0 is a request of padding."""
    bases: tuple[int, ...]
    """Committed tokens of each request."""
    num_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 32
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    """None is `dtype`."""
    trees: Literal["random", "fixed", "chain"] = "random"
    """A tree per request, or one tree or one chain for all (stride 0)."""
    layout: Literal["nhd", "hnd", "transposed"] = "nhd"
    """Order in memory: [block, slot, head], [block, head, slot], or keys as
    [block, head, element, slot] as vLLM's CPU attention keeps them."""
    sliding_window: int | None = None
    soft_cap: float = 0.0
    padding_tokens: int = 0
    """Rows behind the last request's, that belong to nobody."""
    max_seq_len: int | None = None
    """Bound that the host knows; None is a bit more than the longest request."""
    seed: int = 0


SMALL: dict[str, Spec] = {
    "root alone": Spec(rows=(1,), bases=(5,)),
    "no context": Spec(rows=(6,), bases=(0,)),
    "no context, root alone": Spec(rows=(1, 3), bases=(0, 0)),
    "several blocks": Spec(rows=(7,), bases=(75,)),
    "block boundaries": Spec(rows=(5, 5, 5), bases=(16, 11, 15)),
    "ragged": Spec(rows=(3, 9, 1, 6), bases=(40, 0, 17, 1)),
    "padding": Spec(rows=(4, 2, 0, 0), bases=(9, 33, 0, 0), padding_tokens=3),
    "fixed tree": Spec(rows=(8, 8), bases=(20, 35), trees="fixed"),
    "fixed tree, cut": Spec(
        rows=(8, 1, 5, 0), bases=(20, 3, 35, 0), trees="fixed", padding_tokens=2
    ),
    "chain": Spec(rows=(6, 4), bases=(21, 2), trees="chain"),
    "MHA": Spec(rows=(5, 3), bases=(18, 30), num_heads=3, num_kv_heads=3),
    "GQA 9/3": Spec(
        rows=(5, 7), bases=(18, 30), num_heads=9, num_kv_heads=3, head_size=64
    ),
    "MQA": Spec(rows=(5, 2), bases=(18, 4), num_heads=8, num_kv_heads=1),
    "head size 80": Spec(rows=(5, 2), bases=(18, 4), head_size=80),
    "head size 128": Spec(rows=(4, 2), bases=(18, 4), head_size=128),
    "blocks of 32": Spec(rows=(5, 2), bases=(40, 31), block_size=32),
    "blocks of 128": Spec(rows=(5, 2), bases=(140, 126), block_size=128),
    "heads before slots": Spec(rows=(5, 2), bases=(40, 31), layout="hnd"),
    "transposed keys": Spec(
        rows=(5, 2), bases=(40, 31), layout="transposed", trees="fixed"
    ),
    "window inside the tree": Spec(rows=(9, 4), bases=(20, 1), sliding_window=2),
    "window into the context": Spec(rows=(9, 4), bases=(40, 5), sliding_window=10),
    "window wider than all": Spec(rows=(9, 4), bases=(40, 5), sliding_window=500),
    "window of a fixed tree": Spec(
        rows=(9, 4), bases=(40, 5), sliding_window=6, trees="fixed"
    ),
    "soft cap": Spec(rows=(9, 4), bases=(20, 1), soft_cap=0.7),
    "soft cap, fixed tree": Spec(
        rows=(9, 4), bases=(20, 1), soft_cap=0.7, trees="fixed"
    ),
    "float16": Spec(rows=(5, 2), bases=(18, 4), dtype=torch.float16),
    "bfloat16": Spec(rows=(5, 2), bases=(18, 4), dtype=torch.bfloat16),
    "bfloat16, fixed tree": Spec(
        rows=(5, 2), bases=(18, 4), dtype=torch.bfloat16, trees="fixed"
    ),
    "fp8 cache": Spec(
        rows=(5, 2), bases=(18, 4), dtype=torch.bfloat16, cache_dtype=FP8
    ),
    "fp8 cache, fixed tree": Spec(
        rows=(5, 2),
        bases=(18, 4),
        dtype=torch.float16,
        cache_dtype=FP8,
        trees="fixed",
    ),
    "loose bound": Spec(rows=(5, 2), bases=(50, 3), max_seq_len=2000),
}
"""By name; seconds each in the interpreter."""


def _large() -> dict[str, Spec]:
    shapes = {
        "SmolLM2": (9, 3, 64),
        "Vicuna": (32, 32, 128),
        "Llama 3": (32, 8, 128),
        "Phi": (32, 32, 80),
        "MQA": (16, 1, 128),
    }
    widths = {
        "1 x 64": ((64,), (2000,)),
        "1 x 129": ((129,), (700,)),
        "8 ragged": (
            (64, 33, 1, 17, 64, 5, 64, 0),
            (900, 0, 4000, 15, 16, 130, 2047, 0),
        ),
        "32 x 16": ((16,) * 32, tuple(range(100, 740, 20))),
    }
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    specs: dict[str, Spec] = {}
    for shape, (num_heads, num_kv_heads, head_size) in shapes.items():
        for width, (rows, bases) in widths.items():
            for number, dtype in enumerate(dtypes):
                for trees in ("random", "fixed"):
                    name = f"{shape}, {width}, {dtype}, {trees}"
                    specs[name] = Spec(
                        rows=rows,
                        bases=bases,
                        num_heads=num_heads,
                        num_kv_heads=num_kv_heads,
                        head_size=head_size,
                        block_size=(16, 32, 128)[number],
                        dtype=dtype,
                        trees="random" if trees == "random" else "fixed",
                        layout=("nhd", "hnd")[number % 2],
                        sliding_window=300 if width == "8 ragged" else None,
                        soft_cap=5.0 if shape == "Phi" else 0.0,
                        seed=number,
                    )
    for dtype in (torch.bfloat16, torch.float16):
        specs[f"fp8 cache, {dtype}"] = Spec(
            rows=(64, 20),
            bases=(1500, 77),
            num_heads=32,
            num_kv_heads=8,
            head_size=128,
            dtype=dtype,
            cache_dtype=FP8,
        )
    return specs


LARGE = _large()
"""By name; shapes of real models."""


def model_specs(capability: int) -> tuple[Spec, Spec, Spec, torch.dtype]:
    """Batches in the shapes of Vicuna-7B, SmolLM2-135M and Llama-3-8B with one request,
    and an 8-bit type of the cache that a GPU of this compute capability converts."""
    vicuna = Spec(
        rows=(64,),
        bases=(3,),
        num_heads=32,
        num_kv_heads=32,
        head_size=128,
        dtype=torch.bfloat16,
        trees="fixed",
        max_seq_len=4096,
    )
    smollm = replace(vicuna, rows=(9,), num_heads=9, num_kv_heads=3, head_size=64)
    llama = replace(vicuna, num_kv_heads=8)
    # A100 has no conversion from e4m3.
    return vicuna, smollm, llama, FP8 if capability > 80 else torch.float8_e5m2
