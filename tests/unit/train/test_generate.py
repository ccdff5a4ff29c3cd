# SPDX-License-Identifier: Apache-2.0
"""Filling a store, with a stand-in for the engine."""

from pathlib import Path

import pytest
import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.generate import GenerateOptions, fill_store
from vllm_medusa.train.store import AnswerStore


class FakeGenerator:
    """Answers with three tokens that tell the prompt's length and the temperature."""

    def __init__(self, options: GenerateOptions, rounds: int = 1000) -> None:
        self.options = options
        self.rounds = rounds
        self.written = 0

    def write_prompts(self, count, temperature):
        self.written += count
        return [f"written {temperature} {self.written} {i}" for i in range(count)]

    def answer(self, prompts, temperature):
        if not self.rounds:
            raise KeyboardInterrupt
        self.rounds -= 1
        answers = [
            Answer(prompt, [len(prompt), 1, 2], [1], source, temperature)
            for prompt, source in prompts
        ]
        return answers, [torch.zeros(3, 4) for _ in answers]

    def states_of(self, answers):
        return [torch.ones(len(a.answer_token_ids), 4) for a in answers]


def test_interrupted_generation_goes_on_without_duplicates(tmp_path: Path) -> None:
    prompts = [(f"prompt {n}", "file.txt") for n in range(10)]
    options = GenerateOptions(num_tokens=1000, round_size=4)
    with pytest.raises(KeyboardInterrupt):
        fill_store(AnswerStore(tmp_path), FakeGenerator(options, rounds=2), prompts)
    resumed = AnswerStore(tmp_path)
    assert len(resumed.answers) == 8
    fill_store(resumed, FakeGenerator(options), prompts)
    done = AnswerStore(tmp_path)
    assert [answer.prompt for answer in done.answers] == [p for p, _ in prompts]
    assert len(done.load()) == 30
    fill_store(done, FakeGenerator(options, rounds=0), prompts)
    assert len(AnswerStore(tmp_path).answers) == 10


def test_stops_at_the_wanted_number_of_tokens(tmp_path: Path) -> None:
    options = GenerateOptions(num_tokens=50, round_size=6, written_share=0.5)
    seen: list[int] = []
    store = AnswerStore(tmp_path)
    fill_store(store, FakeGenerator(options), None, on_round=seen.append)
    assert seen == [18, 36, 54]
    sources = [answer.source for answer in store.answers]
    assert sources.count("written") == sources.count("template") == 9


def test_temperatures_get_equal_parts(tmp_path: Path) -> None:
    options = GenerateOptions(num_tokens=72, round_size=6, temperatures=(0.0, 0.7))
    for _ in range(2):  # the second run finds all done
        store = AnswerStore(tmp_path)
        fill_store(store, FakeGenerator(options, rounds=4), None)
    temperatures = [answer.temperature for answer in store.answers]
    assert temperatures.count(0.0) == temperatures.count(0.7) == 12


def test_resumed_run_asks_other_templates(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    for tokens in (18, 36):
        options = GenerateOptions(num_tokens=tokens, round_size=6, written_share=0)
        fill_store(store, FakeGenerator(options), None)
    assert len({answer.prompt for answer in store.answers}) >= 11


def test_included_answers_get_their_states_first(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.add([Answer(f"p{n}", [n], []) for n in range(5)])
    fill_store(store, FakeGenerator(GenerateOptions(num_tokens=1, round_size=2)), None)
    assert AnswerStore(tmp_path).load().hidden.eq(1).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_tokens": 0}, "num_tokens"),
        ({"temperatures": (-0.1,)}, "temperatures"),
        ({"temperatures": ()}, "temperatures"),
        ({"written_share": 2}, "written_share"),
        ({"max_answer_tokens": 1024}, "leaves no room"),
    ],
)
def test_impossible_options_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerateOptions(**values)
