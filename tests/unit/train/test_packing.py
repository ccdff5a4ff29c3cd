# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.unit.train import tiny_base
from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.packing import PackedBatch, PackedSampler, pack

LENGTH, ROWS = 32, 3
ANSWERS = tiny_base.answers(40)


def sampler(seed: int = 0, rows: int = ROWS) -> PackedSampler:
    return PackedSampler(ANSWERS, LENGTH, rows, seed)


def epoch(packed: PackedSampler, number: int = 0) -> list[PackedBatch]:
    first = number * packed.steps_per_epoch
    return [packed.batch(first + step) for step in range(packed.steps_per_epoch)]


def sequences(batch: PackedBatch) -> list[tuple[list[int], list[bool], list[int]]]:
    """Tokens, answer mask and positions of each sequence."""
    found = []
    for row in range(len(batch.tokens)):
        for segment in range(1, int(batch.segments[row].max()) + 1):
            here = batch.segments[row] == segment
            parts = (batch.tokens, batch.answer_mask, batch.positions)
            found.append(tuple(part[row][here].tolist() for part in parts))
    return found


@pytest.mark.parametrize("number", [0, 1])
def test_each_answer_is_whole_and_there_once_per_epoch(number: int) -> None:
    found = [seq for batch in epoch(sampler(), number) for seq in sequences(batch)]
    wanted = [
        (
            answer.prompt_token_ids + answer.answer_token_ids,
            [False] * len(answer.prompt_token_ids)
            + [True] * len(answer.answer_token_ids),
            list(range(len(answer.prompt_token_ids) + len(answer.answer_token_ids))),
        )
        for answer in ANSWERS
    ]
    assert sorted(found) == sorted(wanted)


def test_every_answer_token_is_a_target_once_per_epoch() -> None:
    for ahead in (1, 2, 4):
        seen: Counter[int] = Counter()
        for batch in epoch(sampler()):
            targets = batch.targets(ahead)
            seen.update(targets[targets >= 0].tolist())
        # The state before an answer's first token tells that one, so with `ahead`
        # tokens to go the first ahead - 1 of each answer are nobody's target.
        wanted: Counter[int] = Counter()
        for answer in ANSWERS:
            wanted.update(answer.answer_token_ids[ahead - 1 :])
        assert seen == wanted


def test_targets_against_a_loop() -> None:
    (batch, *_) = epoch(sampler())
    for ahead in (1, 3, LENGTH, LENGTH + 1):
        targets = batch.targets(ahead)
        for row in range(ROWS):
            for i in range(LENGTH):
                run = range(i + 1, i + 1 + ahead)
                is_target = run[-1] < LENGTH and all(
                    batch.answer_mask[row, j]
                    and batch.segments[row, j] == batch.segments[row, i]
                    for j in run
                )
                expected = int(batch.tokens[row, run[-1]]) if is_target else -1
                assert targets[row, i] == expected


def test_batches_follow_from_seed_and_step() -> None:
    one, other = sampler(), sampler()
    other.batch(5)
    for step in (0, one.steps_per_epoch, 1):
        assert one.batch(step).tokens.equal(other.batch(step).tokens)
    rows = [row.tolist() for batch in epoch(one) for row in batch.tokens]
    later = [row.tolist() for batch in epoch(one, 1) for row in batch.tokens]
    assert rows != later
    assert sorted(rows) == sorted(later)
    assert not one.batch(0).tokens.equal(sampler(seed=1).batch(0).tokens)


def test_a_batch_does_not_depend_on_how_it_is_shared_out() -> None:
    whole = sampler(rows=4).batch(0)
    halves = [whole.rows(slice(begin, begin + 2)) for begin in (0, 2)]
    assert torch.cat([half.tokens for half in halves]).equal(whole.tokens)
    targets = torch.cat([half.targets(2) for half in halves])
    assert targets.equal(whole.targets(2))


def test_padding_has_no_segment_and_no_target() -> None:
    packed = PackedSampler([Answer("p", [5, 6], [1])], 8, 2, seed=0)
    batch = packed.batch(0)
    assert packed.steps_per_epoch == packed.num_rows == 1
    assert batch.tokens.tolist() == [[1, 5, 6] + 5 * [0], 8 * [0]]
    assert batch.segments.tolist() == [[1] * 3 + 5 * [0], 8 * [0]]
    assert batch.answer_mask.sum() == 2
    assert batch.targets(1).tolist() == [[5, 6] + 6 * [-1], 8 * [-1]]


def test_packing_leaves_little_room() -> None:
    lengths = [1 + n * 37 % 30 for n in range(500)]
    groups = pack(lengths, 32, seed=0)
    assert sorted(n for group in groups for n in group) == list(range(500))
    assert all(sum(lengths[n] for n in group) <= 32 for group in groups)
    assert len(groups) <= 1.03 * sum(lengths) / 32 + 1


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "no answers"),
        ([Answer("who", [1], [])], "no prompt_token_ids: 'who'"),
        ([Answer("who", [1] * 30, [1] * 3)], "33 tokens .* sequence_length 32"),
    ],
)
def test_what_can_not_be_packed_is_refused(answers, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PackedSampler(answers, LENGTH, ROWS, seed=0)
