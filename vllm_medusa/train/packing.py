# SPDX-License-Identifier: Apache-2.0
"""Whole conversations packed into rows of equal length, for a live base model."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import Answer


@dataclass(frozen=True)
class PackedBatch:
    """B rows of T tokens, each of some sequences one after the other, then padding.

    Attributes:
        tokens: [B, T] int64, base vocabulary; 0 in the padding.
        positions: [B, T] int64, from 0 in every sequence; 0 in the padding.
        segments: [B, T] int64, 1, 2, … for a row's sequences, 0 for padding.
        answer_mask: [B, T] bool, True at answer tokens: those may be targets.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    answer_mask: torch.Tensor

    def rows(self, wanted: slice) -> PackedBatch:
        """The batch of some of the rows."""
        return PackedBatch(*(tensor[wanted] for tensor in self._tensors()))

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on another device."""
        return PackedBatch(*(tensor.to(device) for tensor in self._tensors()))

    def targets(self, ahead: int) -> torch.Tensor:
        """The token `ahead` places after each, [B, T] int64, -1 where it is no target.

        It is one if it and all tokens between stand in one answer. The state at a
        position tells the base model the token 1 ahead, and head k, counted from 1,
        the token k + 1 ahead.
        """
        length = self.tokens.shape[1]
        found = torch.full_like(self.tokens, -1)
        if ahead >= length:
            return found
        valid = self.segments[:, ahead:] == self.segments[:, :-ahead]
        for step in range(1, ahead + 1):
            valid = valid & self.answer_mask[:, step : length - ahead + step]
        found[:, :-ahead] = torch.where(valid, self.tokens[:, ahead:], -1)
        return found

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.tokens, self.positions, self.segments, self.answer_mask)


class PackedSampler:
    """Packs answers with their prompts and deals the rows out.

    A pure function of (seed, step): the packing is made once, each epoch deals the
    rows in a new order. Every answer token is a target of the base model once per
    epoch; rows that the last batch of an epoch lacks are padding.

    Args:
        answers: with their `prompt_token_ids`.
        sequence_length: tokens per row, T.
        batch_size: rows per batch, B.
        seed: of packing and order.

    Raises:
        ConfigError: there is no answer, one has no prompt, or does not fit a row.
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        sequence_length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        _check(answers, sequence_length)
        self.answers = answers
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        lengths = [len(a.prompt_token_ids) + len(a.answer_token_ids) for a in answers]
        self._packed = pack(lengths, sequence_length, seed)
        self.num_rows = len(self._packed)
        self.steps_per_epoch = -(-self.num_rows // batch_size)
        self._epoch = -1
        self._order: list[int] = []

    def numbers(self, step: int) -> list[list[int]]:
        """Which answers stand in each row of the batch of `step`, in their order."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(self.num_rows, generator=generator).tolist()
            self._epoch = epoch
        begin = index * self.batch_size
        rows = self._order[begin : begin + self.batch_size]
        return [self._packed[row] for row in rows]

    def batch(self, step: int) -> PackedBatch:
        """The batch of training step `step`, counted over all epochs."""
        shape = self.batch_size, self.sequence_length
        tokens, positions, segments = (
            torch.zeros(shape, dtype=torch.int64) for _ in range(3)
        )
        answer_mask = torch.zeros(shape, dtype=torch.bool)
        for row, numbers in enumerate(self.numbers(step)):
            end = 0
            for segment, number in enumerate(numbers, start=1):
                answer = self.answers[number]
                ids = answer.prompt_token_ids + answer.answer_token_ids
                begin, end = end, end + len(ids)
                tokens[row, begin:end] = torch.tensor(ids)
                positions[row, begin:end] = torch.arange(len(ids))
                segments[row, begin:end] = segment
                answer_mask[row, begin + len(answer.prompt_token_ids) : end] = True
        return PackedBatch(tokens, positions, segments, answer_mask)


def pack(lengths: Sequence[int], room: int, seed: int) -> list[list[int]]:
    """Group numbers of sequences so that a group's lengths sum to at most `room`.

    Best fit, longest first, which leaves little room unused; sequences of the same
    length are shuffled. Every sequence is in one group.

    Args:
        lengths: of the sequences, each at most `room`.
        room: of a group.
        seed: of the shuffle.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    groups: list[list[int]] = []
    # Groups by the room they have left, and the rooms there are, ascending.
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for number in sorted(shuffled, key=lambda n: lengths[n], reverse=True):
        length = lengths[number]
        index = bisect_left(rooms, length)
        if index < len(rooms):
            left = rooms[index]
            group = with_room[left].pop()
            if not with_room[left]:
                del rooms[index], with_room[left]
        else:
            left, group = room, len(groups)
            groups.append([])
        groups[group].append(number)
        if left - length not in with_room:
            insort(rooms, left - length)
        with_room.setdefault(left - length, []).append(group)
    return groups


def _check(answers: Sequence[Answer], sequence_length: int) -> None:
    if not answers:
        raise ConfigError("there are no answers to train on")
    for answer in answers:
        if not answer.prompt_token_ids:
            raise ConfigError(
                f"an answer has no prompt_token_ids: {answer.prompt[:60]!r}"
            )
    longest = max(
        answers, key=lambda a: len(a.prompt_token_ids) + len(a.answer_token_ids)
    )
    needed = len(longest.prompt_token_ids) + len(longest.answer_token_ids)
    if needed > sequence_length:
        raise ConfigError(
            f"an answer with its prompt has {needed} tokens and does not fit "
            f"sequence_length {sequence_length}: raise it, or leave the answer out "
            f"({longest.prompt[:60]!r})"
        )
