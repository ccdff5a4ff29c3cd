# SPDX-License-Identifier: Apache-2.0
"""No room while writing: an error that names the file, which stays as it was."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.robustness.support.small_disk import contents, room_for
from tests.unit.train import toy
from vllm_medusa import default_model
from vllm_medusa.calibration.result_file import write_result_file
from vllm_medusa.checkpoint import load_heads, save_heads
from vllm_medusa.cli.convert import convert
from vllm_medusa.cli.main import build_parser, main
from vllm_medusa.errors import OutputError
from vllm_medusa.files import atomic_path
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.json_file import write_json
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.curve import draw_curve
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.store import AnswerStore
from vllm_medusa.train.trainer import Trainer

ROOM = 64
SPEC = HeadsSpec(num_heads=2, hidden_size=16, vocab_size=40, projection="shared")
FIT = FitOptions(epochs=1, batch_size=64, run_length=16, sampled_vocab=20)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {
        name: torch.full(shape, value) for name, shape in SPEC.tensor_shapes().items()
    }


def save(folder: Path, attempt: int) -> None:
    save_heads(folder, SPEC, tensors(float(attempt)))


def convert_heads(folder: Path, attempt: int) -> None:
    convert(folder.parent / "source", folder / "heads", force=bool(attempt))


def save_training(folder: Path, attempt: int) -> None:
    corpus, held_out = toy.corpus(10), toy.corpus(4, seed=9)
    # Other data each time: the state that is there is not gone on with.
    path = folder / "training.pt"
    batches = toy.batches(corpus, FIT)
    trainer = Trainer(
        toy.heads(), batches, corpus.tokens, held_out, FIT, folder / "none.pt"
    )
    trainer.checkpoint = path
    trainer.fit()


def add_answers(folder: Path, attempt: int) -> None:
    answers = [Answer(f"prompt {attempt}", [5, 6, 7], [1])]
    AnswerStore(folder).add(answers, [torch.ones(3, 4)])


def build_tree(folder: Path, attempt: int) -> None:
    source = folder.parent / "accuracies.json"
    words = ["--accuracies", source, "--nodes", 20 + attempt, "--output", folder / "t"]
    arguments = build_parser().parse_args(["tree", "build", *map(str, words)])
    arguments.run(arguments)


def result(folder: Path, attempt: int) -> None:
    write_result_file(folder / "r.json", {"kind": "x"}, "command", {"n": attempt})


def published(folder: Path, attempt: int) -> None:
    write_json(folder / "accuracies.json", {"accuracy": [[0.5] * 40], "n": attempt})


def curve(folder: Path, attempt: int) -> None:
    point = {"step": 1, "loss": [1.0 + attempt], "accuracy": [0.5]}
    draw_curve([point, {**point, "step": 2}], folder / "curve.png")


WRITERS = (
    *(save, convert_heads, save_training, build_tree, result),
    *(published, curve),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder; beside it is what the writers read."""
    save_heads(tmp_path / "source", SPEC, tensors(1.0))
    table = {"accuracy": [[0.5, 0.2, 0.1], [0.4, 0.2, 0.1], [0.3, 0.2, 0.1]]}
    (tmp_path / "accuracies.json").write_text(json.dumps(table))
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


@pytest.mark.parametrize("write", WRITERS)
def test_what_was_there_stays(folder: Path, write: Callable[[Path, int], None]) -> None:
    write(folder, 0)
    before = contents(folder)
    assert before
    with room_for(ROOM), pytest.raises(OutputError) as failure:
        write(folder, 1)
    message = str(failure.value)
    assert os.strerror(errno.EFBIG) in message
    assert str(folder) in message
    assert contents(folder) == before


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_is_left_where_nothing_was(
    folder: Path, write: Callable[[Path, int], None]
) -> None:
    with room_for(ROOM), pytest.raises(OutputError):
        write(folder, 0)
    assert not [name for name in contents(folder) if name.startswith(".")]
    write(folder, 0)


def test_heads_stay_whole_if_only_their_description_finds_no_room(
    folder: Path,
) -> None:
    save(folder, 0)
    size = (folder / "model.safetensors").stat().st_size
    with room_for(size), pytest.raises(OutputError, match=r"config\.json"):
        save_heads(folder, SPEC, tensors(1.0), extra_config={"note": "x" * size})
    assert load_heads(folder).tensors.keys() == tensors(1.0).keys()
    assert sorted(contents(folder)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("room", [0, 20, 200, 300])
def test_answers_go_on_after_a_full_disk(tmp_path: Path, room: int) -> None:
    """Hidden states, or a line of the answers, find no room; the next run goes on."""
    add_answers(tmp_path, 0)
    size = (tmp_path / "answers.jsonl").stat().st_size
    with room_for(min(room, size + 10)), pytest.raises(OutputError):
        AnswerStore(tmp_path).add([Answer("later", [8] * 90, [1])], [torch.ones(90, 4)])
    assert not list(tmp_path.glob(".*"))
    store = AnswerStore(tmp_path)
    assert [answer.prompt for answer in store.answers] == ["prompt 0"]
    add_answers(tmp_path, 1)
    assert AnswerStore(tmp_path).load().tokens.tolist() == [5, 6, 7, 5, 6, 7]


def test_the_default_model_is_made_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"0" * 1000)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(default_model.MODEL_VARIABLE, raising=False)
    monkeypatch.setattr(default_model, "_gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(default_model, "version", lambda name: "9.8")
    monkeypatch.setattr(default_model, "find_spec", lambda name: True)
    monkeypatch.setattr(default_model, "_convert", unpack)
    monkeypatch.setattr(default_model, "_check", lambda folder: None)
    with room_for(ROOM), pytest.raises(OutputError, match="File too large"):
        default_model.model_path()
    assert not contents(tmp_path)
    # A killed process leaves a half-made folder; the next one clears it away.
    cache = default_model.cache_folder()
    (cache / ".SmolLM2-135M-Instruct-9.8-1.killed").mkdir()
    assert default_model.model_path().is_dir()
    assert [path.name for path in cache.iterdir()] == ["SmolLM2-135M-Instruct-9.8-1"]


def test_the_commands_say_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_heads(tmp_path / "source", SPEC, tensors(1.0))
    words = ["convert", str(tmp_path / "source"), str(tmp_path / "target")]
    capsys.readouterr()
    with room_for(ROOM):
        assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: cannot write {tmp_path / 'target' / 'model.safetensors'} "
        "(File too large): make room, or choose another place"
    ) or line.startswith(f"error: cannot write {tmp_path}/.target.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"Not a directory|File exists"),
        atomic_path(tmp_path / "file" / "x"),
    ):
        raise AssertionError("there is nothing to write to")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
