# SPDX-License-Identifier: Apache-2.0
"""Training on states that a base model computes on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.unit.train import live, tiny_base
from tests.unit.train.test_trainer import InterruptionError
from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.backbone import load_backbone
from vllm_medusa.train.compute_options import ComputeOptions
from vllm_medusa.train.live_batches import LiveBatches, corpus_of
from vllm_medusa.train.measure import rank_of_truth, top_1


@pytest.fixture(scope="module")
def backbone() -> LlamaForCausalLM:
    return tiny_base.llama().requires_grad_(False)


@pytest.fixture(scope="module")
def answers(backbone: LlamaForCausalLM) -> list[Answer]:
    return live.answered(backbone, 150)


@torch.no_grad()
def test_states_and_targets_are_those_of_each_answer(
    backbone: LlamaForCausalLM, answers: list[Answer]
) -> None:
    batches = LiveBatches(
        answers,
        backbone.get_decoder(),
        num_heads=3,
        rows_per_batch=2,
        sequence_length=live.LENGTH,
        seed=0,
    )
    batch = batches.batch(0)
    hidden = batch.hidden(torch.device("cpu"))
    probable = backbone.lm_head(hidden).softmax(-1)
    assert batch.targets.shape == (3, *hidden.shape[:2])
    for head in range(3):
        row, place = (batch.targets[head] >= 0).nonzero().T
        target = batch.targets[head, row, place]
        # It was drawn from the state that the docstring of `Batch` says.
        drawn_from = probable[row, place + head + 1]
        assert drawn_from.gather(1, target[:, None]).mean() > 0.7
        # and comes from no other
        before = probable[row, place + head].gather(1, target[:, None])
        assert before.mean() < 0.2
    assert (batch.targets >= 0).sum((1, 2)).min() > 20


@torch.no_grad()
def test_corpus_to_measure_on(
    backbone: LlamaForCausalLM, answers: list[Answer]
) -> None:
    corpus = corpus_of(answers, backbone, live.LENGTH)
    ids = [token for answer in answers for token in answer.answer_token_ids]
    assert corpus.tokens.tolist() == ids
    assert corpus.answers.bincount().tolist() == [24] * 150
    for number in (0, 17, 149):
        answer = answers[number]
        tokens = torch.tensor([answer.prompt_token_ids + answer.answer_token_ids])
        states = backbone.model(tokens).last_hidden_state[0, -25:-1]
        kept = corpus.hidden[corpus.answers == number].float()
        torch.testing.assert_close(kept, states, rtol=0.01, atol=0.01)


def test_accuracy_rises_on_held_out_answers(
    backbone: LlamaForCausalLM, answers: list[Answer], tmp_path: Path
) -> None:
    run = live.trainer(backbone, answers, tmp_path)
    before = top_1(rank_of_truth(run.heads, run.held_out))
    run.fit()
    after = top_1(rank_of_truth(run.heads, run.held_out))
    assert max(before) < 0.15
    assert after[0] > 0.5
    assert after[1] > 0.35
    assert run.history[-1]["accuracy"] == after
    assert run.history[-1]["loss"][0] < 0.7 * run.history[0]["loss"][0]


def test_resumed_run_gives_the_same_weights(
    backbone: LlamaForCausalLM, answers: list[Answer], tmp_path: Path
) -> None:
    options = replace(live.OPTIONS, epochs=2, sampled_vocab=40, average=0.9)
    compute = replace(live.COMPUTE, gradient_accumulation_steps=2)

    def interrupt(step: int, num_steps: int) -> None:
        if step == 13:
            raise InterruptionError

    whole = live.trainer(backbone, answers, tmp_path / "whole", options, compute)
    whole.fit()
    cut = live.trainer(backbone, answers, tmp_path / "cut", options, compute)
    with pytest.raises(InterruptionError):
        cut.fit(interrupt)
    resumed = live.trainer(backbone, answers, tmp_path / "cut", options, compute)
    assert resumed.step == 10
    resumed.fit()
    assert resumed.history == whole.history
    for name, value in whole.heads.state_dict().items():
        assert resumed.heads.state_dict()[name].equal(value), name
    with pytest.raises(ConfigError, match="other options"):
        other = replace(compute, mixed_precision="bf16")
        live.trainer(backbone, answers, tmp_path / "cut", options, other)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_same_gradient(
    backbone: LlamaForCausalLM, answers: list[Answer], tmp_path: Path, parts: int
) -> None:
    gradients = []
    for count in (1, parts):
        compute = replace(live.COMPUTE, gradient_accumulation_steps=count)
        run = live.trainer(backbone, answers, tmp_path, compute=compute)
        losses = run.training_step.run(3)
        gradients.append([losses.float(), *(p.grad for p in run.parameters)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_part_may_be_all_padding(
    backbone: LlamaForCausalLM, answers: list[Answer], tmp_path: Path
) -> None:
    compute = replace(live.COMPUTE, gradient_accumulation_steps=4)
    few = answers[:5]  # four to train on, which fill two of four rows
    run = live.trainer(backbone, few, tmp_path, compute=compute)
    assert (run.training_step.batches.batch(0).targets[0] >= 0).any(1).sum() == 2
    losses = run.training_step.run(0)
    assert losses.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.parameters)


def test_an_uneven_batch_is_refused(
    backbone: LlamaForCausalLM, answers: list[Answer], tmp_path: Path
) -> None:
    compute = replace(live.COMPUTE, gradient_accumulation_steps=3)
    with pytest.raises(ConfigError, match="4 rows can't be shared evenly"):
        live.trainer(backbone, answers, tmp_path, compute=compute)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_accuracy_rises_on_a_quantised_base(tmp_path: Path, quantization) -> None:
    folder = str(tiny_base.save(tmp_path / "base"))
    backbone = load_backbone(folder, torch.float32, quantization, "cpu")
    backbone.requires_grad_(False)
    answers = live.answered(backbone, 80)
    options = replace(live.OPTIONS, epochs=6)
    compute = replace(live.COMPUTE, quantization=quantization)
    run = live.trainer(backbone, answers, tmp_path, options, compute)
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    run.fit()
    assert run.history[-1]["accuracy"][0] > 0.35
    for name, value in backbone.named_parameters():
        assert value.equal(before[name]), name


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"quantization": "4bit"}, ConfigError, "take hidden_states live"),
        (
            {"hidden_states": "live", "quantization": "8bit", "fsdp": True},
            UnsupportedError,
            "8bit is not sharded",
        ),
        ({"gradient_accumulation_steps": 0}, ConfigError, "at least 1: 0"),
    ],
)
def test_impossible_options_are_refused(values, error, message: str) -> None:
    with pytest.raises(error, match=message):
        ComputeOptions(**values)
