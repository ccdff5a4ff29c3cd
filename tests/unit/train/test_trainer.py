# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.train import toy
from vllm_medusa.errors import ConfigError
from vllm_medusa.train.batches import BatchSampler
from vllm_medusa.train.measure import rank_of_truth, top_1
from vllm_medusa.train.trainer import FitOptions, Trainer

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
    return Trainer(
        toy.heads(dropout=options.dropout),
        toy.corpus(answers),
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


def test_only_tokens_of_the_same_answer_are_targets() -> None:
    corpus = toy.corpus(6, 10)
    sampler = BatchSampler(corpus, num_heads=3, batch_size=64, run_length=8, seed=2)
    seen = 0
    for step in range(3 * sampler.steps_per_epoch):
        batch = sampler.batch(step)
        runs, size, _ = batch.hidden.shape
        assert batch.tokens.shape == (runs, size) == (7, 8 + 3)
        for head in range(3):
            for run in range(runs):
                # the toy's states tell their token, and so their row in the corpus
                for i in range(8):
                    if batch.valid[head, run, i]:
                        seen += 1
                        window = batch.tokens[run, i : i + head + 2]
                        assert _stands_in_one_answer(corpus, window)
    # 10 - 1, 10 - 2, 10 - 3 targets in each of 6 answers; the cut at the end of
    # an epoch loses less than a run of each
    assert 0.7 < seen / (3 * 6 * (9 + 8 + 7)) <= 1


def _stands_in_one_answer(corpus: toy.Corpus, window: torch.Tensor) -> bool:
    size = len(window)
    return any(
        answer[start : start + size].equal(window)
        for answer in corpus.tokens.view(-1, 10)
        for start in range(10 - size + 1)
    )


def test_each_epoch_deals_every_run_once_in_a_new_order() -> None:
    corpus = toy.corpus(8, 16)
    sampler = BatchSampler(corpus, num_heads=1, batch_size=32, run_length=16, seed=0)
    assert sampler.steps_per_epoch == 4
    epochs = []
    for epoch in (0, 1):
        steps = range(4 * epoch, 4 * epoch + 4)
        epochs.append(torch.cat([sampler.batch(s).tokens[:, :16] for s in steps]))
    assert sorted(epochs[0].tolist()) == sorted(corpus.tokens.view(8, 16).tolist())
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("hard_weight", 1.5), ("learning_rate", -1.0), ("batch_size", 100)],
)
def test_impossible_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(FitOptions(), **{name: value})
