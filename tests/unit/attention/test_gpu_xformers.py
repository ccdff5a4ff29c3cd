# SPDX-License-Identifier: Apache-2.0
"""The prefix part by xformers, without a GPU: in Triton's interpreter."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.unit.attention.cases import make_case
from tests.unit.attention.prepared import Prepared
from tests.unit.attention.specs import FP8, SMALL
from vllm_medusa.attention import xformers_prefix
from vllm_medusa.attention.xformers_attention import XformersTreeAttention
from vllm_medusa.attention.xformers_prefix import XformersPrefix, refusal
from vllm_medusa.errors import UnsupportedError

# Read when xformers is imported; without a GPU it would leave its kernels out.
os.environ.setdefault("XFORMERS_ENABLE_TRITON", "1")
CPU = torch.device("cpu")
MAX_NUM_REQS = 8
NAMES = [
    "root alone",
    "no context",
    "ragged",
    "padding",
    "fixed tree, cut",
    "MHA",
    "GQA 9/3",
    "MQA",
    "blocks of 32",
    "blocks of 128",
    "loose bound",
]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (torch.zeros(3, 16, 2, 64), "float32"),
        (torch.zeros(3, 16, 2, 64).to(FP8), "float8"),
        (torch.zeros(3, 16, 2, 80).half(), "head size 80"),
        (torch.zeros(3, 24, 2, 64).half(), "--block-size"),
        (torch.zeros(3, 2, 16, 64).half().transpose(1, 2), "VLLM_KV_CACHE_LAYOUT"),
    ],
)
def test_caches_that_xformers_refuses(keys: torch.Tensor, words: str) -> None:
    assert words in (refusal(keys, keys) or "")


def test_caches_that_xformers_reads() -> None:
    both = torch.zeros(3, 16, 2, 128).half()
    assert refusal(*both.split(64, dim=-1)) is None


def test_without_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(UnsupportedError, match=r"vllm-medusa\[cuda\]"):
        XformersPrefix(MAX_NUM_REQS, CPU)


def test_bias_of_xformers() -> None:
    """The bias stands for the prefix alone, by xformers' own reading of it."""
    pytest.importorskip("xformers", reason="needs xformers")
    case = make_case(SMALL["several blocks"], CPU)
    bases = torch.tensor([75], dtype=torch.int32)
    prefix = XformersPrefix(MAX_NUM_REQS, CPU)
    table = case.kv.block_table
    bias = prefix._make_bias(case.trees, bases, table, case.kv.block_size)
    # What kernels read from tensors, `materialize` reads from the lists of bounds.
    bias.k_seqinfo.seqlen_py = bias.k_seqinfo.seqlen.tolist()
    num_blocks, block_size = case.kv.keys.shape[:2]
    width = bias.block_tables.shape[1] * block_size
    mask = bias.materialize((case.trees.num_tokens, width))
    visible = torch.zeros(num_blocks * block_size, dtype=torch.bool)
    for position in range(75):
        block = int(table[0, position // block_size])
        visible[block * block_size + position % block_size] = True
    assert (mask.isfinite() == visible[: mask.shape[-1]]).all()


@pytest.mark.interpreter
@pytest.mark.parametrize("name", NAMES)
def test_against_dense(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """xformers' own kernel, with lengths that only the device's tensors tell."""
    fmha: Any = pytest.importorskip("xformers.ops.fmha", reason="needs xformers")
    # It serves GPUs alone, and asks which.
    monkeypatch.setattr(fmha, "_ensure_op_supports_or_raise", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    case = make_case(replace(SMALL[name], dtype=torch.float16), CPU)
    # Whole pages are multiplied: what nobody wrote must be a number, as in vLLM.
    cache = case.kv.keys._base
    assert cache is not None
    cache.nan_to_num_(50.0)
    case.check(Prepared(XformersTreeAttention(MAX_NUM_REQS, CPU)))


def test_other_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias with other fields is noticed when the engine starts."""
    pytest.importorskip("xformers", reason="needs xformers")
    from xformers.ops.fmha import attn_bias

    monkeypatch.delattr(attn_bias, "_PaddedSeqLenInfo")
    with pytest.raises(UnsupportedError, match=r"0\.0\.35"):
        XformersPrefix(MAX_NUM_REQS, CPU)


def test_triton_without_block_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xformers", reason="needs xformers")
    monkeypatch.setattr(xformers_prefix, "tl", object())
    with pytest.raises(UnsupportedError, match="block pointers"):
        XformersPrefix(MAX_NUM_REQS, CPU)
