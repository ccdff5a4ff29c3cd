# SPDX-License-Identifier: Apache-2.0
"""Whole runs: quality is kept, heads get better, the output can be used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.train.medusa2 import tiny
from tests.unit.train.medusa2.runs import command, contents, run
from vllm_medusa.checkpoint import load_heads
from vllm_medusa.cli.main import main
from vllm_medusa.errors import QualityError
from vllm_medusa.tree import from_file, load_accuracies

CHANCE = 1 / tiny.LETTERS


def top_1(recipe: dict[str, Any]) -> list[float]:
    return [row[0] for row in recipe["measured"]["held_out"]["accuracy"]]


def test_backbone_learns_what_heads_alone_cannot_and_keeps_its_quality(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "projection": "single",
        "draft_vocab": 80,
        "hard_weight": 1.0,
        "measure_every": 80,
    }
    # as many steps and the same answers: first heads alone
    alone = run(
        base,
        answers,
        tmp_path / "alone",
        heads_epochs=12.0,
        epochs=0.01,
        learning_rate=1e-2,
        **shared,
    )
    both = run(
        base,
        answers,
        tmp_path / "both",
        kind="full",
        schedule="one-stage",
        epochs=12.0,
        heads_weight=1.0,
        backbone_learning_rate=5e-3,
        head_multiple=2.0,
        max_perplexity_increase=0.08,
        min_agreement=0.95,
        **shared,
    )
    assert abs(alone["steps"] - both["steps"]) <= 1
    before, after = both["quality"]["before"], both["quality"]["after"]
    assert before["perplexity"] < 3  # of 40 letters: it knows the language
    assert after["perplexity"] <= 1.08 * before["perplexity"]
    assert after["agreement"] >= 0.95
    assert len(both["quality"]["history"]) == 3
    # The letter after the next hangs on the present one, which the original forgets.
    assert top_1(alone)[0] < 4 * CHANCE
    assert top_1(both)[0] > 0.5
    assert min(top_1(alone)[1], top_1(both)[1]) > 0.6
    # nothing but the heads was trained in the first
    assert alone["quality"]["after"]["agreement"] > 0.99


def test_command_writes_a_backbone_and_its_heads(
    base: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(base, answers, tmp_path)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "perplexity" in printed
    assert "head 1: top-1" in printed
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "backbone",
        "heads",
        "quality.json",
    }
    merged = AutoModelForCausalLM.from_pretrained(out / "backbone")
    original = tiny.load(base)
    names = set(load_file(base / "model.safetensors"))
    assert set(load_file(out / "backbone" / "model.safetensors")) == names
    assert merged.config.dtype == original.config.dtype
    assert not merged.model.layers[0].mlp.up_proj.weight.equal(
        original.model.layers[0].mlp.up_proj.weight
    )
    turns = [{"role": "user", "content": "abc"}]
    texts = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(turns, tokenize=False)
        for folder in (base, out / "backbone")
    ]
    assert texts[0] == texts[1]

    recipe = json.loads((out / "heads" / "recipe.json").read_text())
    assert recipe["stage"] == "medusa2"
    assert recipe["quality"] == json.loads((out / "quality.json").read_text())
    steps = recipe["quality"]["history"][-1]["step"]
    assert recipe["steps"] > steps  # heads alone came before
    tree = from_file(out / "heads" / "tree.json")
    assert tree.num_nodes == 5
    assert load_accuracies(out / "heads" / "accuracies.json")
    assert load_heads(out / "heads").base_model == "../backbone"

    # the shipped accuracy is that of the files, rounded as they are
    assert top_1(recipe)[1] == pytest.approx(
        accuracy(out, 2, recipe, answers), abs=0.01
    )
    assert top_1(recipe)[1] > 0.5

    # again: nothing is left to do, the same files come out
    before = contents(out)
    assert main(words) == 0
    after = contents(out)
    for name in ("backbone/model.safetensors", "heads/model.safetensors"):
        assert after[name] == before[name]
    assert {path.name for path in (tmp_path / "out.work").iterdir()} == {
        "heads.pt",
        "joint.pt",
        "quality.json",
    }


@torch.no_grad()
def accuracy(out: Path, ahead: int, recipe: dict[str, Any], answers: Path) -> float:
    """Of the head that looks `ahead` beyond the next token, by the reference heads."""
    from vllm_medusa.heads import ReferenceHeads
    from vllm_medusa.train.answers import read_answers
    from vllm_medusa.train.split import HELD_OUT, sides_of

    checkpoint = load_heads(out / "heads")
    tensors = {
        name: value.float() if value.is_floating_point() else value
        for name, value in checkpoint.tensors.items()
    }
    heads = ReferenceHeads.from_tensors(checkpoint.spec, tensors)
    model = tiny.load(out / "backbone")
    hits = []
    found = read_answers(answers)
    for answer, side in zip(found, sides_of(found, (), 0.2), strict=True):
        if side != HELD_OUT:
            continue
        ids = torch.tensor(answer.prompt_token_ids + answer.answer_token_ids)
        hidden = model.model(ids[None]).last_hidden_state[0]
        _, guesses = heads.top_k(hidden, 2, 1, model.lm_head.weight)
        first = len(answer.prompt_token_ids) - 1
        right = guesses[first : -ahead - 1, ahead - 1, 0] == ids[first + ahead + 1 :]
        hits.append(right.float())
    return torch.cat(hits).mean().item()


def test_guard_stops_the_run_and_leaves_a_former_output(
    base: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = command(base, answers, tmp_path, schedule="one-stage", epochs=0.2)
    assert main(good) == 0
    out = tmp_path / "out"
    before = contents(out)
    wild = {
        "schedule": "one-stage",
        "work": tmp_path / "wild",
        "base_loss": "cross-entropy",
        "heads_weight": 50,
        "backbone_learning_rate": 3e-2,
        "measure_every": 1,
        "warmup": 1.0,
    }
    assert main(command(base, answers, tmp_path, **wild)) == 2
    message = capsys.readouterr().err
    assert (
        "error: the backbone has moved too far from the original after step" in message
    )
    assert "--export-last-good" in message
    assert contents(out) == before
    report = json.loads((tmp_path / "wild" / "quality.json").read_text())
    assert "perplexity rose" in report["stopped"] or "positions" in report["stopped"]
    assert len(report["history"]) > 1
    state = torch.load(tmp_path / "wild" / "joint.pt", weights_only=True)
    assert state["step"] == report["history"][-1]["step"] - 1

    # the last state within the bounds can be written
    assert main([*command(base, answers, tmp_path, **wild), "--export-last-good"]) == 0
    recipe = json.loads((out / "heads" / "recipe.json").read_text())
    assert recipe["steps"] == state["step"]
    after = recipe["quality"]["after"]
    good_one = report["history"][-2]
    assert after["perplexity"] == pytest.approx(good_one["perplexity"], rel=1e-4)


def test_merged_backbone_out_of_bounds_is_not_written(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    # The bounds are tightened when all that is left to do is to write.
    changes: dict[str, Any] = {
        "schedule": "one-stage",
        "epochs": 0.2,
        "backbone_learning_rate": 2e-2,
        "heads_weight": 1.0,
        "max_perplexity_increase": None,
    }
    recipe = run(base, answers, tmp_path, **changes)
    assert recipe["quality"]["after"]["agreement"] < 1
    before = contents(tmp_path / "output")
    with pytest.raises(QualityError, match="after merging"):
        run(
            base, answers, tmp_path, min_agreement=1.0, saved_dtype="float16", **changes
        )
    assert contents(tmp_path / "output") == before


def test_run_begins_with_given_heads(base: Path, answers: Path, tmp_path: Path) -> None:
    first = run(base, answers, tmp_path / "first", heads_epochs=2.0, learning_rate=2e-2)
    second = run(
        base,
        answers,
        tmp_path / "second",
        heads_folder=tmp_path / "first" / "output" / "heads",
        epochs=0.1,
    )
    assert second["steps"] < first["steps"]
    assert top_1(second)[1] > 0.5
    assert not (tmp_path / "second" / "work" / "heads.pt").exists()


def test_untied_model_is_written_untied(
    tied: Path, answers: Path, tmp_path: Path
) -> None:
    run(
        tied,
        answers,
        tmp_path,
        lm_head=True,
        untie=True,
        schedule="one-stage",
        epochs=0.1,
        max_perplexity_increase=None,
        min_agreement=None,
    )
    read = tiny.load(tmp_path / "output" / "backbone")
    assert not read.config.tie_word_embeddings
    assert read.model.embed_tokens.weight.equal(
        tiny.load(tied).model.embed_tokens.weight
    )
    assert not read.lm_head.weight.equal(read.model.embed_tokens.weight)
