# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from tests.unit.train import tiny_base
from vllm_medusa.errors import UnsupportedError
from vllm_medusa.train.backbone import load_backbone
from vllm_medusa.train.packing_check import check_packing


@pytest.mark.parametrize("make", [tiny_base.llama, lambda: tiny_base.mistral(5)])
def test_models_of_attention_pass(make) -> None:
    check_packing(make())


@pytest.mark.parametrize("quantization", [None, "4bit", "8bit"])
def test_rounding_passes(tmp_path: Path, quantization) -> None:
    folder = str(tiny_base.save(tmp_path))
    check_packing(load_backbone(folder, torch.bfloat16, quantization, "cpu"))


def test_a_state_that_goes_on_is_refused() -> None:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=64,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=2,
        initializer_range=0.3,
    )
    with pytest.raises(UnsupportedError, match="MambaForCausalLM lets a sequence see"):
        check_packing(MambaForCausalLM(config).eval())
