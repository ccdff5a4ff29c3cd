# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from torch import nn

from tests.unit.train import tiny_base
from vllm_medusa.errors import CheckpointError, UnsupportedError
from vllm_medusa.train.backbone import hidden_states, load_backbone
from vllm_medusa.train.packing import PackedSampler


@pytest.mark.parametrize("make", [tiny_base.llama, lambda: tiny_base.mistral(5)])
@torch.no_grad()
def test_packed_states_are_those_of_each_sequence_alone(make) -> None:
    backbone = make()
    for layer in backbone.model.layers:
        layer.self_attn.o_proj.weight.mul_(50)  # what leaks in is seen
    batch = PackedSampler(tiny_base.answers(30), 40, 4, seed=0).batch(0)
    packed = hidden_states(backbone, batch)
    assert packed.shape == (4, 40, tiny_base.HIDDEN)
    assert packed.isfinite().all()
    segments = 0
    for row in range(4):
        for segment in range(1, int(batch.segments[row].max()) + 1):
            here = batch.segments[row] == segment
            alone = backbone.model(batch.tokens[row][here][None]).last_hidden_state
            torch.testing.assert_close(packed[row][here], alone[0])
            segments += 1
    assert segments > 8


@torch.no_grad()
def test_states_are_what_the_lm_head_reads() -> None:
    backbone = tiny_base.llama()
    batch = PackedSampler(tiny_base.answers(1), 40, 1, seed=0).batch(0)
    logits = backbone.lm_head(hidden_states(backbone, batch))
    count = int((batch.segments > 0).sum())
    expected = backbone(batch.tokens[:, :count]).logits
    torch.testing.assert_close(logits[:, :count], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_quantised_states_are_close(
    tmp_path: Path, quantization, dtype: torch.dtype
) -> None:
    folder = str(tiny_base.save(tmp_path))
    exact = load_backbone(folder, torch.float32, None, "cpu")
    quantised = load_backbone(folder, dtype, quantization, "cpu")
    kinds = {type(module).__name__ for module in quantised.modules()}
    assert "Linear4bit" in kinds or "Linear8bitLt" in kinds
    assert type(quantised.lm_head) is nn.Linear
    batch = PackedSampler(tiny_base.answers(20), 40, 4, seed=0).batch(0)
    expected, actual = hidden_states(exact, batch), hidden_states(quantised, batch)
    assert actual.dtype == dtype
    here = batch.segments > 0
    similar = torch.cosine_similarity(actual[here].float(), expected[here], dim=-1)
    assert similar.mean() > (0.99 if quantization == "8bit" else 0.85)
    assert (actual[here].float() != expected[here]).any()


def test_widths_without_kernels_are_refused(tmp_path: Path) -> None:
    if not has_avx512bf16():
        pytest.skip("this processor packs no 4-bit weights")
    folder = tiny_base.save(tmp_path, intermediate_size=96)
    with pytest.raises(UnsupportedError, match=r"down_proj is 96 x 64"):
        load_backbone(str(folder), torch.float32, "4bit", "cpu")


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_backbone(str(tmp_path), torch.float32, None, "cpu")
