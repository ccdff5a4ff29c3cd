# SPDX-License-Identifier: Apache-2.0
"""The plain reference against the formulas, written out."""

from __future__ import annotations

import pytest
import torch

from tests.unit.heads.support import HIDDEN, lm_head_weight, make_spec, random_tensors
from vllm_medusa.errors import CheckpointError
from vllm_medusa.heads import ReferenceHeads


def silu(x):
    return x / (1 + torch.exp(-x))


def one_head(block, projection="shared", **changes):
    spec = make_spec(block, projection, num_heads=1, **{"mapped": False} | changes)
    tensors = random_tensors(spec)
    x = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3))
    return ReferenceHeads.from_tensors(spec, tensors), tensors, x


@torch.inference_mode()
def test_residual_blocks():
    heads, t, x = one_head("residual")
    y = x
    for layer in range(2):
        name = f"blocks.0.layers.{layer}"
        y = y + silu(t[f"{name}.weight"] @ y + t[f"{name}.bias"])
    torch.testing.assert_close(heads.blocks[0](x), y)


@torch.inference_mode()
def test_mlp_blocks():
    heads, t, x = one_head("mlp")
    y = x
    for layer in range(2):
        up, down = (f"blocks.0.layers.{layer}.{part}" for part in ("up", "down"))
        inner = silu(t[f"{up}.weight"] @ y + t[f"{up}.bias"])
        y = y + t[f"{down}.weight"] @ inner + t[f"{down}.bias"]
    torch.testing.assert_close(heads.blocks[0](x), y)


@torch.inference_mode()
def test_layernorm_blocks():
    heads, t, x = one_head("layernorm", bias=False)
    y = x
    for layer in range(2):
        z = t[f"blocks.0.layers.{layer}.weight"] @ y
        z = (z - z.mean()) / torch.sqrt(z.var(correction=0) + 1e-5)
        norm = f"blocks.0.norms.{layer}"
        y = silu(z * t[f"{norm}.weight"] + t[f"{norm}.bias"])
    torch.testing.assert_close(heads.blocks[0](x), y)


@torch.inference_mode()
@pytest.mark.parametrize("projection", ["shared", "own", "single", "low_rank"])
def test_projections(projection):
    heads, t, x = one_head("residual", projection, mapped=True)
    lm_head = lm_head_weight()
    matrix = {
        "shared": lambda: lm_head[t["token_map"]],
        "own": lambda: t["lm_heads.0.weight"],
        "single": lambda: t["lm_head.weight"],
        "low_rank": lambda: t["lm_heads.0.up.weight"] @ t["lm_heads.0.down.weight"],
    }[projection]()
    expected = matrix @ heads.blocks[0](x)
    torch.testing.assert_close(heads(x, lm_head)[0], expected, atol=1e-4, rtol=1e-4)
    log_probs, token_ids = heads.top_k(x[None], 1, 3, lm_head)
    best = expected.topk(3)
    torch.testing.assert_close(log_probs[0, 0], best.values - expected.logsumexp(0))
    assert torch.equal(token_ids[0, 0], t["token_map"][best.indices])


@torch.inference_mode()
@pytest.mark.parametrize("block", ["residual", "mlp"])
def test_fresh_heads_are_the_base_models_lm_head(block):
    """As in the reference implementation: the block starts as the identity."""
    heads = ReferenceHeads(make_spec(block, "shared", mapped=False))
    x, lm_head = torch.randn(4, HIDDEN), lm_head_weight()
    logits = heads(x, lm_head)
    for head in range(3):
        torch.testing.assert_close(logits[:, head], x @ lm_head.T)


def test_what_is_missing_is_named():
    heads = ReferenceHeads(make_spec("residual", "shared", mapped=False))
    with pytest.raises(CheckpointError, match="needs the base model's LM head"):
        heads(torch.randn(1, HIDDEN))
    with pytest.raises(CheckpointError, match="token_map holds None tokens"):
        ReferenceHeads(make_spec("residual", "shared", mapped=True))
