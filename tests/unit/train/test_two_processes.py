# SPDX-License-Identifier: Apache-2.0
"""Two processes train together over gloo as one does alone."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.ranks import run_ranks
from tests.unit.train import live, tiny_base, toy
from tests.unit.train.test_trainer import InterruptionError
from vllm_medusa.checkpoint import load_heads
from vllm_medusa.errors import ConfigError, MedusaError
from vllm_medusa.train.answers import append_answers
from vllm_medusa.train.compute_options import ComputeOptions
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.generate import GenerateOptions
from vllm_medusa.train.options import HeadsOptions, TrainOptions
from vllm_medusa.train.pipeline import train
from vllm_medusa.train.processes import Processes, started
from vllm_medusa.train.progress import RichProgress
from vllm_medusa.train.sharding import share
from vllm_medusa.train.trainer import Trainer

FIT = replace(live.OPTIONS, epochs=2, average=0.9, sampled_vocab=40)
CACHED = FitOptions(
    epochs=2, batch_size=128, run_length=16, learning_rate=1e-2, sampled_vocab=20
)


def pipeline_options(folder: Path, name: str, **compute: Any) -> TrainOptions:
    return TrainOptions(
        model=str(folder / "base"),
        output=folder / name,
        work=folder / f"{name}.work",
        answers=(folder / "answers.jsonl",),
        held_out=0.2,
        generate=GenerateOptions(num_tokens=1),
        heads=HeadsOptions(num_heads=2, block="residual", draft_vocab=50),
        fit=FIT,
        compute=ComputeOptions(hidden_states="live", mixed_precision="no", **compute),
    )


def run_pipelines(folder: Path, suffix: str, processes: Processes) -> None:
    """Copied and sharded heads and base, and in two parts."""
    for name, compute in (
        ("ddp", {}),
        ("fsdp", {"fsdp": True}),
        ("parts", {"gradient_accumulation_steps": 2}),
    ):
        options = pipeline_options(folder, f"{name}{suffix}", **compute)
        train(options, RichProgress(shown=False), [], processes)


def cached_trainer(folder: Path, processes: Processes) -> Trainer:
    corpus = toy.corpus()
    return Trainer(
        toy.heads(),
        toy.batches(corpus, CACHED),
        corpus.tokens,
        toy.corpus(10, seed=9),
        CACHED,
        folder / "training.pt",
        processes=processes,
    )


def resume_sharded(folder: Path, processes: Processes) -> list[dict[str, Any]]:
    """Weights of a whole sharded run, and of one that was cut."""

    def interrupt(step: int, num_steps: int) -> None:
        if step == 8:
            raise InterruptionError

    backbone = tiny_base.llama().requires_grad_(False)
    answers = live.answered(backbone, 60)
    compute = replace(live.COMPUTE, fsdp=True)
    found = []
    for name in ("whole", "cut", "cut"):
        run = live.trainer(backbone, answers, folder / name, FIT, compute, processes)
        try:
            run.fit(interrupt if name == "cut" and run.step == 0 else lambda *_: None)
        except InterruptionError:
            continue
        with run.whole_heads():
            weights = run.heads.named_parameters()
            found.append({name: value.detach().clone() for name, value in weights})
    return found


def train_as_rank(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    results: dict[str, Any] = {}
    with started() as processes:
        results["processes"] = (processes.rank, processes.count)
        run_pipelines(Path(folder), "", processes)
        cached_trainer(Path(folder) / "cached", processes).fit()
        results["resumed"] = resume_sharded(Path(folder), processes)
        results["refused"] = refused(Path(folder), processes)
        sharded = share(torch.nn.Linear(4, 4), processes, fsdp=True)
        results["local"] = sharded.weight.to_local().numel()
    torch.save(results, f"{folder}/{rank}.pt")


def refused(folder: Path, processes: Processes) -> str:
    """What is said of answers that several processes would have to make."""
    options = replace(
        pipeline_options(folder, "none"),
        answers=(),
        generate=GenerateOptions(num_tokens=10**6),
    )
    try:
        train(options, RichProgress(shown=False), [], processes)
    except MedusaError as error:
        return str(error)
    except SystemExit as end:
        return f"exit {end.code}"
    return "trained"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("two")
    backbone = tiny_base.llama()
    tiny_base.save(made / "base")
    append_answers(made / "answers.jsonl", live.answered(backbone, 60))
    return made


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    before = {key: os.environ.get(key) for key in address}
    os.environ |= address
    try:
        return run_ranks(train_as_rank, folder)
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@pytest.fixture(scope="module")
def one(folder: Path, two: Any) -> None:
    """The same by one process."""
    run_pipelines(folder, "-alone", Processes())
    cached_trainer(folder / "cached-alone", Processes()).fit()


def state(path: Path) -> dict[str, Any]:
    return torch.load(path / "training.pt", weights_only=True)


@pytest.mark.parametrize("name", ["ddp.work", "fsdp.work", "parts.work", "cached"])
def test_weights_are_those_of_one_process(one: None, folder: Path, name: str) -> None:
    alone = name.replace(".work", "-alone.work") if "." in name else f"{name}-alone"
    ours, theirs = state(folder / name), state(folder / alone)
    assert ours["step"] == theirs["step"] > 8
    assert ours["heads"].keys() == theirs["heads"].keys()
    for key, value in theirs["heads"].items():
        torch.testing.assert_close(ours["heads"][key], value, rtol=2e-3, atol=2e-4)
    for point, expected in zip(ours["history"], theirs["history"], strict=True):
        assert point["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert point["accuracy"] == pytest.approx(expected["accuracy"], abs=0.01)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_first_writes_what_one_process_writes(
    one: None, folder: Path, name: str
) -> None:
    written = sorted(path.name for path in (folder / name).iterdir())
    alone = sorted(path.name for path in (folder / f"{name}-alone").iterdir())
    assert written == alone
    ours, theirs = load_heads(folder / name), load_heads(folder / f"{name}-alone")
    for key, value in theirs.tensors.items():
        torch.testing.assert_close(ours.tensors[key], value, rtol=0.02, atol=1e-3)
    recipe = json.loads((folder / name / "recipe.json").read_text())
    assert recipe["stage"] == "medusa1"
    assert recipe["compute"] == {
        "hidden_states": "live",
        "quantization": None,
        "mixed_precision": "no",
        "gradient_accumulation_steps": 1,
        "fsdp": name == "fsdp",
        "processes": 2,
    }


def test_a_sharded_run_goes_on_to_the_same_weights(two: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(two):
        assert found["processes"] == (rank, 2)
        assert found["local"] == 8, "a weight of 16 numbers is not sharded"
        whole, resumed = found["resumed"]
        for key, value in whole.items():
            assert resumed[key].equal(value), key
            assert value.equal(two[0]["resumed"][0][key])


def test_answers_are_not_made_by_two(two: list[dict[str, Any]]) -> None:
    assert "in one process with --answers-only first" in two[0]["refused"]
    assert two[1]["refused"] == "exit 2"


def test_another_number_of_processes_goes_on(one: None, folder: Path) -> None:
    """A sharded run's state is a copied run's too."""
    options = pipeline_options(folder, "fsdp")
    recipe = train(options, RichProgress(shown=False))
    assert recipe["compute"]["processes"] == 1
    more = replace(options, fit=replace(FIT, epochs=3))
    with pytest.raises(ConfigError, match="other options"):
        train(more, RichProgress(shown=False))
