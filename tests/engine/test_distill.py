# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa distill` on a tiny random model, through real vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.support.distill import build_talker, command_for, distill
from tests.engine.support.engines import register_overrides_once
from tests.engine.support.heads import fit_heads, save_fitted
from tests.engine.support.models import EOS
from vllm_medusa.cli.main import main
from vllm_medusa.distill import run
from vllm_medusa.train.answers import Answer, read_answers

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="requests do not depend on the runner"),
]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def command(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return command_for(talker, tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers") / "out"


@pytest.fixture(scope="module")
def files(command: list[str], folder: Path) -> dict[str, bytes]:
    return distill(command, folder, "--max-num-seqs", "64")


def records(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for name in sorted(files)
        if name.endswith(".jsonl")
        for line in files[name].splitlines()
    ]


def test_all_sources_answer_in_two_turns(files: dict[str, bytes]) -> None:
    manifest = json.loads(files["manifest.json"])
    totals = manifest["totals"]
    assert totals["prompts"] == 16
    assert len(manifest["shards"]) >= 2
    assert set(totals["answers_by_task"]) == {
        "chat",
        "prompts:prompts.txt",
        "self",
        "templates",
    }
    assert totals["answers_by_turn"]["1"] >= 5
    assert set(totals["answers_by_finish"]) == {"length", "stop"}
    found = records(files)
    assert {r["prompt"] for r in found if r["task"] == "chat"} >= {"how long"}
    written = [r["prompt"] for r in found if r["source"] == "self"]
    assert len(set(written)) >= 5
    for record in found:
        is_whole = record["answer_token_ids"][-1] == EOS
        assert record["finish"] == ("stop" if is_whole else "length")
        assert EOS not in record["answer_token_ids"][:-1]


def test_greedy_answers_are_those_of_the_model(
    talker: Path, files: dict[str, bytes]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(talker, dtype=torch.float32)
    greedy = [record for record in records(files) if record["temperature"] == 0]
    assert {record["turn"] for record in greedy} == {0, 1}
    for record in greedy:
        prompt, answer = record["prompt_token_ids"], record["answer_token_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0]
        best = logits[len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == answer


def test_training_reads_the_folder(folder: Path, files: dict[str, bytes]) -> None:
    answers = read_answers(folder)
    assert len(answers) == len(records(files))
    assert all(isinstance(answer, Answer) for answer in answers)


def test_one_request_at_a_time_gives_the_same_files(
    command: list[str], files: dict[str, bytes], tmp_path: Path
) -> None:
    assert distill(command, tmp_path / "out", "--max-num-seqs", "1") == files


def test_interrupted_and_sped_up_by_heads_it_ends_with_the_same_files(
    talker: Path,
    command: list[str],
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards: list[int] = []
    make_shard = run._Run._make_shard

    def interrupt_the_second(self: Any, *arguments: Any) -> None:
        shards.append(1)
        if len(shards) == 2:
            raise KeyboardInterrupt
        make_shard(self, *arguments)

    heads = save_fitted(fit_heads(talker, num_steps=10), tmp_path / "heads")
    options = ("--speculative-model", f"medusa:{heads}?tree=optimal:4")
    with monkeypatch.context() as patch:
        patch.setattr(run._Run, "_make_shard", interrupt_the_second)
        arguments = [*command, "--output", str(tmp_path / "out"), *options]
        register_overrides_once()
        assert main(arguments) == 130
    assert (tmp_path / "out" / "answers-00000.jsonl").exists()
    assert not (tmp_path / "out" / "answers-00001.jsonl").exists()
    assert distill(command, tmp_path / "out", *options) == files
