# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import Answer, read_answers
from vllm_medusa.train.capture import assemble
from vllm_medusa.train.store import AnswerStore


def answer(*tokens: int) -> Answer:
    return Answer(f"prompt {tokens}", list(tokens), [1, 2])


def states(count: int, value: float) -> torch.Tensor:
    return torch.full((count, 4), value, dtype=torch.bfloat16)


def test_round_trip(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.add([answer(5, 6), answer(7)], [states(2, 1.0), states(1, 2.0)])
    store.add([answer(8, 9)], [states(2, 3.0)])
    reopened = AnswerStore(tmp_path)
    assert reopened.answers == store.answers
    assert reopened.num_tokens == 5
    corpus = reopened.load()
    assert corpus.tokens.tolist() == [5, 6, 7, 8, 9]
    assert corpus.answers.tolist() == [0, 0, 1, 2, 2]
    assert corpus.hidden[:, 0].tolist() == [1, 1, 2, 3, 3]
    some = reopened.load([True, False, True])
    assert some.tokens.tolist() == [5, 6, 8, 9]
    assert some.answers.tolist() == [0, 0, 2, 2]
    assert some.hidden[:, 0].tolist() == [1, 1, 3, 3]


def test_interrupted_between_shard_and_lines(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.add([answer(5)], [states(1, 1.0)])
    lines = store.path.read_bytes()
    store.add([answer(6), answer(7)], [states(1, 2.0), states(1, 3.0)])
    # the second round's shard was written, of its lines only a part of the first
    store.path.write_bytes(lines + b'{"prompt": "pro')
    reopened = AnswerStore(tmp_path)
    assert reopened.answers == [answer(5)]
    assert len(list(tmp_path.glob("hidden-*"))) == 1
    reopened.add([answer(8)], [states(1, 4.0)])
    assert reopened.load().tokens.tolist() == [5, 8]
    assert reopened.load().hidden[:, 0].tolist() == [1, 4]


def test_answers_from_elsewhere_get_states_later(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.add([answer(n) for n in range(5)])
    assert store.ranges_without_states(2) == [(0, 2), (2, 4), (4, 5)]
    store.add_states(2, [states(1, 2.0), states(1, 3.0)])
    store = AnswerStore(tmp_path)
    assert store.ranges_without_states(2) == [(0, 2), (4, 5)]
    with pytest.raises(ConfigError, match="no answers with hidden states"):
        store.load()
    store.add_states(0, [states(1, 0.0), states(1, 1.0)])
    store.add_states(4, [states(1, 4.0)])
    assert AnswerStore(tmp_path).load().hidden[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.add([answer(5)], [states(1, 1.0)])
    (shard,) = tmp_path.glob("hidden-*")
    shard.write_bytes(b"not a safetensors file")
    with pytest.raises(ConfigError, match=shard.name):
        store.load()


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"prompt": "p"}',
        '{"prompt": "p", "answer_token_ids": []}',
        '{"prompt": "p", "answer_token_ids": [1, -2]}',
        '{"prompt": "p", "answer_token_ids": [1.5]}',
        '{"answer_token_ids": [1]}',
    ],
)
def test_bad_answer_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "p", "answer_token_ids": [1]}\n' + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_answers(path)


def test_assemble_joins_parts_and_refuses_gaps() -> None:
    rows = assemble([(0, states(2, 1.0)), (2, states(3, 2.0))], 4)
    assert rows[:, 0].tolist() == [1, 1, 2, 2]
    # after a preemption the first rows come again
    again = [(0, states(2, 1.0)), (0, states(3, 5.0))]
    assert assemble(again, 3)[:, 0].tolist() == [5, 5, 5]
    with pytest.raises(RuntimeError, match="prefix caching"):
        assemble([(1, states(2, 1.0))], 3)
