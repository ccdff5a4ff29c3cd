# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa evaluate` as a user runs it, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine
from vllm_medusa.evaluation.worker import score

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="the trees of a running engine can be changed"),
]

# A tree on the engine that changes them, another shape of tree, and what is lossy.
SETTINGS = {
    "one": "tree=chain:1&num_heads=1",
    "tree": "tree=optimal:6",
    "beam": "tree=beam:2x3",
    "typical": "tree=optimal:6&temperature=0.7&acceptance=typical&epsilon=0.05",
    "rejection": "tree=optimal:6&temperature=0.7&acceptance=rejection",
}
PROMPTS = (
    {"prompt": "abcd efgh", "reference": "abcd", "category": "letters"},
    {"turns": ["What is it?"], "category": "question"},
    {"messages": [{"role": "user", "content": "0123456789"}]},
)


@pytest.fixture(scope="module")
def result(llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result file of one evaluation of all `SETTINGS`."""
    folder = tmp_path_factory.mktemp("evaluate")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps(prompt) for prompt in PROMPTS))
    path = folder / "deep" / "result.json"
    command = [sys.executable, "-m", "vllm_medusa.cli.main", "evaluate"]
    command += ["--model", str(llama.path), "--heads", str(llama.heads)]
    command += ["--prompts", str(prompts), "--output", str(path), "--bind", "nobind"]
    command += ["--max-tokens", "20", "--max-model-len", "128"]
    for name, options in SETTINGS.items():
        command += ["--setting", f"{name}={options}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "custom (median" in done.stdout
    return path


@pytest.fixture(scope="module")
def rows(result: Path) -> dict[tuple[str, float], dict[str, Any]]:
    summary = json.loads(result.read_text())["summary"]
    return {(row["setting"], row["temperature"]): row for row in summary}


def test_exact_trees_keep_the_greedy_text(rows: dict[tuple[str, float], Any]) -> None:
    plain = rows["plain", 0.0]
    for name in ("one", "tree", "beam"):
        row = rows[name, 0.0]
        assert row["other_texts"] == 0
        assert row["quality"] == plain["quality"]
        assert row["references"] == plain["references"]
    assert plain["quality"]["agreement"] == 1.0
    assert plain["references"]["references"] == 1
    assert plain["tokens_per_step"]["median"] == 1.0


def test_every_setting_has_its_own_tree(rows: dict[tuple[str, float], Any]) -> None:
    tokens = {
        name: rows[name, 0.0]["tokens_per_step"]["median"]
        for name in ("one", "tree", "beam")
    }
    # A chain of one can't bring more than 2, and the others go deeper.
    assert 1.0 < tokens["one"] <= 2.0
    assert tokens["tree"] > tokens["one"]
    assert tokens["beam"] > tokens["one"]


def test_drawn_texts_are_scored(rows: dict[tuple[str, float], Any]) -> None:
    for name in ("plain", "typical", "rejection"):
        row = rows[name, 0.7]
        assert row["other_texts"] is None
        assert (
            row["quality"]["perplexity"] > rows["plain", 0.0]["quality"]["perplexity"]
        )
        assert 0.0 < row["quality"]["agreement"] < 1.0
        assert row["real_time_factor"]["low"] > 0
    assert rows["typical", 0.7]["tokens_per_step"]["low"] > 1.0
    assert rows["rejection", 0.7]["tokens_per_step"]["low"] > 1.0
    # Different seeds, other texts: two repeats of at most three answers.
    assert rows["plain", 0.7]["repeats"] == 2


def test_the_result_names_no_folder_of_this_machine(result: Path) -> None:
    text = result.read_text()
    document = json.loads(text)
    assert str(result.parent) not in text
    assert document["settings"]["model"] == "model"
    assert document["settings"]["changes_trees"] is True
    assert [p["has_reference"] for p in document["prompts"]] == [True, False, False]
    assert document["machine"]["versions"]["vllm-medusa"]


def test_scores_are_those_of_one_pass_of_the_model(llama: TinyModel) -> None:
    sequences = [[[5, 9, 30], [7, 80, 12, 12]], [[40, 41], [42]]]
    with engine(llama.path) as llm:
        scores = score(llm, sequences)
    model = AutoModelForCausalLM.from_pretrained(llama.path, dtype=torch.float32)
    for (prompt, output), found in zip(sequences, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + output])).logits[0]
        # Row i is about token i + 1.
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        wanted = logprobs[torch.arange(len(output)), torch.tensor(output)]
        assert found["logprobs"] == pytest.approx(wanted.tolist(), abs=1e-4)
        ranks = 1 + (logprobs > wanted[:, None]).sum(-1)
        assert found["ranks"] == ranks.tolist()
