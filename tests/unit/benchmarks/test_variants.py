# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.common.upstream_heads import (
    SkipVariant,
    base_projection,
    upstream_tensors,
    widen,
)
from benchmarks.common.variants import (
    WITHOUT_PLUGINS,
    Setting,
    Variant,
    engine_groups,
    make_variant,
    make_variants,
)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting("some/heads", tmp_path, tmp_path)


def test_plain_vllm_runs_without_any_plugin(setting: Setting) -> None:
    variant = make_variant("vanilla", setting)
    assert variant.arguments == {"enforce_eager": True}
    assert variant.environment == WITHOUT_PLUGINS
    assert make_variant("vanilla+compiled", setting).arguments == {
        "enforce_eager": False
    }


def test_medusa_with_its_own_table_or_a_fixed_tree(setting: Setting) -> None:
    own = make_variant("medusa", setting)
    assert own.arguments["speculative_config"] == {
        "method": "medusa",
        "model": "some/heads",
    }
    assert own.environment == {}
    fixed = make_variant("medusa:optimal:4", setting).arguments["speculative_config"]
    assert fixed["tree"] == "optimal:4"
    assert fixed["num_speculative_tokens_per_batch_size"] is None


def test_ngram_takes_a_number_of_drafts(setting: Setting) -> None:
    config = make_variant("ngram:6", setting).arguments["speculative_config"]
    assert (config["method"], config["num_speculative_tokens"]) == ("ngram", 6)


def test_what_cannot_run_is_left_out_with_its_reason(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.common.variants.find_spec", lambda name: None)
    variants, skipped = make_variants(["ngram", "suffix"], setting)
    assert [variant.name for variant in variants] == ["vanilla", "ngram"]
    assert skipped == {"suffix": "arctic-inference is not installed"}


def test_an_unknown_name_is_refused(setting: Setting) -> None:
    with pytest.raises(ValueError, match="unknown variant 'eagle'"):
        make_variant("eagle", setting)


def test_every_group_has_plain_vllm() -> None:
    variants = [Variant(name) for name in ("vanilla", "a", "b", "c")]
    names = [[v.name for v in group] for group in engine_groups(variants, 3)]
    assert names == [["vanilla", "a", "b"], ["vanilla", "c"]]
    assert engine_groups(variants[:1], 3) == [variants[:1]]
    with pytest.raises(ValueError, match="at least 2 engines"):
        engine_groups(variants, 1)


def test_a_widened_projection_guesses_the_same_tokens() -> None:
    torch.manual_seed(0)
    token_map = torch.tensor([7, 2, 11, 3])
    projection = torch.randn(4, 5)
    full = widen(projection, token_map, 16)
    hidden = torch.randn(200, 5)
    reduced_guess = token_map[(hidden @ projection.T).argmax(-1)]
    full_guess = (hidden @ full.T).argmax(-1)
    # Only the lowest draft token (2) shares its row, with tokens 0 and 1 below it.
    others = reduced_guess != 2
    assert others.any()
    assert torch.equal(full_guess[others], reduced_guess[others])
    assert set(full_guess[~others].tolist()) == {0}


def heads_spec(**fields: Any) -> Any:
    return SimpleNamespace(block="residual", num_heads=2, **fields)


def test_low_rank_projections_are_multiplied_out() -> None:
    base = torch.zeros(6, 4)
    tensors = {"blocks.0.layers.0.weight": torch.ones(4, 4)}
    for head in range(2):
        tensors[f"lm_heads.{head}.up.weight"] = torch.randn(6, 2)
        tensors[f"lm_heads.{head}.down.weight"] = torch.randn(2, 4)
    made = upstream_tensors(heads_spec(projection="low_rank"), tensors, base)
    assert set(made) == {
        "blocks.0.layers.0.weight",
        "lm_heads.0.weight",
        "lm_heads.1.weight",
    }
    expected = tensors["lm_heads.1.up.weight"] @ tensors["lm_heads.1.down.weight"]
    assert torch.equal(made["lm_heads.1.weight"], expected)


def test_a_shared_projection_is_the_base_models() -> None:
    base = torch.randn(6, 4)
    made = upstream_tensors(heads_spec(projection="shared"), {}, base)
    assert torch.equal(made["lm_head.weight"], base)


def test_other_blocks_do_not_fit_vllms_format() -> None:
    spec = SimpleNamespace(block="mlp", projection="shared", num_heads=2)
    with pytest.raises(SkipVariant, match="no block of kind 'mlp'"):
        upstream_tensors(spec, {}, torch.zeros(6, 4))


def test_the_base_projection_may_be_tied(tmp_path: Path) -> None:
    embedding = torch.randn(6, 4)
    file = tmp_path / "model.safetensors"
    save_file({"model.embed_tokens.weight": embedding}, file)
    assert torch.equal(base_projection(tmp_path), embedding)
    head = torch.randn(6, 4)
    save_file({"model.embed_tokens.weight": embedding, "lm_head.weight": head}, file)
    assert torch.equal(base_projection(tmp_path), head)
    file.unlink()
    with pytest.raises(SkipVariant, match="no LM head"):
        base_projection(tmp_path)
