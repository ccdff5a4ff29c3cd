# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.train import toy
from vllm_medusa.errors import ConfigError
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.measure import rank_of_truth, top_1
from vllm_medusa.train.trainer import Trainer

OPTIONS = FitOptions(
    epochs=6,
    batch_size=128,
    run_length=16,
    learning_rate=1e-2,
    sampled_vocab=20,
    dropout=0.2,
    average=0.9,
    measure_every=20,
    save_every=7,
)


class InterruptionError(Exception):
    pass


def trainer(folder: Path, options: FitOptions = OPTIONS, answers: int = 40) -> Trainer:
    corpus = toy.corpus(answers)
    return Trainer(
        toy.heads(dropout=options.dropout),
        toy.batches(corpus, options),
        corpus.tokens,
        toy.corpus(10, seed=9),
        options,
        folder / "training.pt",
    )


def test_resumed_run_gives_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.fit()

    def interrupt(step: int, num_steps: int) -> None:
        if step == 25:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        trainer(tmp_path / "cut").fit(interrupt)
    resumed = trainer(tmp_path / "cut")
    assert resumed.step == 21  # the last checkpoint before the interruption
    resumed.fit()
    assert resumed.history == whole.history
    for name, value in whole.heads.state_dict().items():
        assert resumed.heads.state_dict()[name].equal(value), name


def test_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.fit()
    again = trainer(tmp_path)
    steps = []
    again.fit(lambda step, _: steps.append(step))
    assert not steps
    for name, value in first.heads.state_dict().items():
        assert again.heads.state_dict()[name].equal(value), name


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).fit()
    with pytest.raises(ConfigError, match="other options or other data"):
        trainer(tmp_path, replace(OPTIONS, learning_rate=1e-3))
    with pytest.raises(ConfigError, match="other options or other data"):
        trainer(tmp_path, answers=41)


def test_checkpoint_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path).fit()
    lm_head = toy.lm_head()
    lm_head[20] += 1
    monkeypatch.setattr(toy, "lm_head", lambda: lm_head)
    with pytest.raises(ConfigError, match="another model"):
        trainer(tmp_path)


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training.pt").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="is damaged"):
        trainer(tmp_path)


def test_accuracy_rises_above_chance_on_held_out_text(tmp_path: Path) -> None:
    held_out = toy.corpus(10, seed=9)
    before = top_1(rank_of_truth(toy.heads(), held_out))
    run = trainer(tmp_path)
    run.fit()
    after = top_1(rank_of_truth(run.heads, held_out))
    # Of 40 tokens 30 can be guessed, and a step is as expected 9 times in 10.
    assert max(before) < 0.1
    assert after[0] > 0.5
    assert after[1] > 0.4
    assert run.history[-1]["accuracy"] == after
    assert run.history[-1]["loss"][0] < run.history[0]["loss"][0]
    # an untrained token can never be guessed right
    unknown = (held_out.tokens < 10).float().mean().item()
    assert after[0] <= 1 - unknown + 1e-6


def test_learning_rate_rises_then_falls(tmp_path: Path) -> None:
    run = trainer(tmp_path, replace(OPTIONS, warmup=0.1))
    rates = [run.learning_rate(step) for step in range(run.num_steps)]
    peak = rates.index(max(rates))
    assert 0 < peak <= 0.1 * run.num_steps
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.05 * OPTIONS.learning_rate


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("hard_weight", 1.5), ("learning_rate", -1.0), ("batch_size", 100)],
)
def test_impossible_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(FitOptions(), **{name: value}).rows_per_step(32)
