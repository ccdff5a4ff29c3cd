# SPDX-License-Identifier: Apache-2.0
"""Bad input ends in one clear error, before anything is trained."""

import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest

from tests.unit.train.medusa2 import tiny
from tests.unit.train.medusa2.runs import command, run
from vllm_medusa.cli.main import main
from vllm_medusa.errors import (
    CheckpointError,
    ConfigError,
    MedusaError,
    OutputError,
    UnsupportedError,
)
from vllm_medusa.locks import exclusive
from vllm_medusa.train.medusa2 import pipeline
from vllm_medusa.train.medusa2.pipeline import train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation_prompts": "none.jsonl"}, "none.jsonl"),
        ({"heads": "none"}, "none"),
        ({"prompts": "x.txt"}, "makes no answers"),
        ({"untie": True}, "is not tied"),
        ({"export_last_good": True, "schedule": "one-stage"}, "no state within"),
        ({"sequence_length": 4, "batch_size": 8}, "too few"),
        ({"max_perplexity_increase": -1}, "max_perplexity_increase"),
        ({"fsdp": True}, "--fsdp"),
    ],
)
def test_bad_input_is_one_error(
    base: Path,
    answers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    message: str,
) -> None:
    assert main(command(base, answers, tmp_path, **changes)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_answers_of_another_model_are_refused(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    lines = answers.read_text().splitlines()
    strange = json.loads(lines[0]) | {"answer_token_ids": [tiny.VOCAB_SIZE]}
    file = tmp_path / "strange.jsonl"
    file.write_text("\n".join([*lines, json.dumps(strange)]))
    with pytest.raises(ConfigError, match="answers of another model"):
        run(base, file, tmp_path)


def test_output_must_not_hold_what_is_read(base: Path, answers: Path) -> None:
    moved = base.parent / "moved"
    options = tiny.options(moved / "output" / "backbone", (answers,), moved)
    with pytest.raises(ConfigError, match="lies in the output"):
        train(options, tiny.Silence())


def test_generation_config_that_cannot_be_written_is_refused_at_once(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    file = copy / "generation_config.json"
    # no sampling, but a temperature: transformers reads it, and won't write it
    file.write_text(json.dumps({"do_sample": False, "temperature": 0.5}))
    with pytest.raises(CheckpointError, match="generation_config"):
        run(copy, answers, tmp_path)


@pytest.mark.parametrize("saved_dtype", ["auto", "float32"])
def test_quantised_base_is_refused_before_it_is_loaded(
    base: Path, answers: Path, tmp_path: Path, saved_dtype: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, copy)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="are quantised"):
        run(copy, answers, tmp_path, saved_dtype=saved_dtype)
    assert not (tmp_path / "output").exists()


def test_output_that_is_a_file_is_refused_before_the_model_is_loaded(
    base: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_backbone", None)
    (tmp_path / "output").write_text("mine")
    with pytest.raises(OutputError, match="output can't be made"):
        run(base, answers, tmp_path)
    assert (tmp_path / "output").read_text() == "mine"


def test_tied_lm_head_is_refused_before_heads_are_trained(
    tied: Path, answers: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--untie"):
        run(tied, answers, tmp_path, lm_head=True)
    assert not (tmp_path / "work" / "heads.pt").exists()


@pytest.mark.parametrize("folder", ["work", "output"])
def test_other_runs_are_kept_out(
    base: Path,
    answers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    monkeypatch.setattr(pipeline, "load_backbone", None)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold() -> None:
        with exclusive(tmp_path / folder, wait=False):
            ready.set()
            done.wait(60)

    other = context.Process(target=hold)
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(OutputError, match="another process is at work"):
            run(base, answers, tmp_path)
    finally:
        done.set()
        other.join()


def test_missing_peft_is_one_error(
    base: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MedusaError, match=r"pip install 'vllm-medusa\[train\]'"):
        run(base, answers, tmp_path)
