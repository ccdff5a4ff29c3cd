# SPDX-License-Identifier: Apache-2.0
"""The canonical form: what is written is what is read."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.checkpoint.support import (
    HIDDEN,
    VOCAB,
    assert_same,
    canonical_tensors,
)
from tests.unit.heads.support import all_specs, random_tensors, spec_name
from vllm_medusa.checkpoint import load_heads, save_heads
from vllm_medusa.errors import CheckpointError
from vllm_medusa.heads import HeadsSpec, ReferenceHeads

SPEC = HeadsSpec(
    num_heads=3, hidden_size=HIDDEN, num_layers=2, vocab_size=VOCAB, projection="own"
)


@pytest.mark.parametrize("spec", all_specs(), ids=spec_name)
def test_round_trip(tmp_path, spec):
    tensors = random_tensors(spec)
    save_heads(tmp_path, spec, tensors, base_model="a/model", extra_config={"steps": 7})
    checkpoint = load_heads(tmp_path)
    assert checkpoint.spec == spec
    assert_same(checkpoint.tensors, tensors)
    assert (checkpoint.format, checkpoint.base_model) == ("canonical", "a/model")
    assert checkpoint.config["steps"] == 7
    assert checkpoint.notes == ()


@pytest.mark.parametrize("spec", all_specs(), ids=spec_name)
def test_the_reference_module_has_the_canonical_names(tmp_path, spec):
    tensors = random_tensors(spec)
    module = ReferenceHeads.from_tensors(spec, tensors)
    save_heads(tmp_path, spec, module.state_dict())
    assert_same(load_heads(tmp_path).tensors, tensors)


def test_vllms_own_medusa_reads_residual_heads(tmp_path):
    """vLLM 0.32: names by `named_parameters`, sizes by its config class."""
    save_heads(tmp_path, SPEC, canonical_tensors())
    module = pytest.importorskip("vllm.transformers_utils.configs.medusa")

    config = module.MedusaConfig.from_pretrained(str(tmp_path))
    assert (config.num_heads, config.num_hidden_layers) == (3, 2)
    assert (config.hidden_size, config.vocab_size) == (HIDDEN, VOCAB)
    assert config.truncated_vocab_size == VOCAB
    assert config.medusa_fc_bias and not config.original_lm_head
    assert_same(load_file(tmp_path / "model.safetensors"), canonical_tensors())


def test_files_can_be_read_by_others_and_nothing_else_is_left(tmp_path):
    save_heads(tmp_path, SPEC, canonical_tensors())
    save_heads(tmp_path, SPEC, canonical_tensors())
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    modes = [stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()]
    assert modes[0] == modes[1]


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    whole = torch.arange(2.0 * HIDDEN * HIDDEN).view(2, HIDDEN, HIDDEN)
    tensors = {
        "blocks.0.layers.0.weight": whole[0],
        "blocks.0.layers.1.weight": whole[0],
        "blocks.1.layers.0.weight": whole[1].T,
        "blocks.1.layers.1.weight": whole[1],
    }
    spec = HeadsSpec(num_heads=2, hidden_size=HIDDEN, num_layers=2, block_bias=False)
    save_heads(tmp_path, spec, tensors)
    assert_same(load_heads(tmp_path).tensors, tensors)


def test_what_does_not_fit_is_not_written(tmp_path):
    tensors = canonical_tensors()
    tensors["lm_heads.0.weight"][0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"'lm_heads.0.weight' holds 1 values"):
        save_heads(tmp_path / "new", SPEC, tensors)
    del tensors["lm_heads.0.weight"]
    with pytest.raises(CheckpointError, match=r"missing: lm_heads.0.weight"):
        save_heads(tmp_path / "new", SPEC, tensors)
    with pytest.raises(CheckpointError, match="must not set hidden_size"):
        save_heads(
            tmp_path / "new",
            SPEC,
            canonical_tensors(),
            extra_config={"hidden_size": 3},
        )
    assert not (tmp_path / "new").exists()


def test_config_is_plain_json(tmp_path):
    save_heads(tmp_path, SPEC, canonical_tensors())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "medusa" and config["projection"] == "own"
    assert "intermediate_size" not in config
