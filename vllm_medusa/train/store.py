# SPDX-License-Identifier: Apache-2.0
"""Answers and their hidden states on disk, consistent after any interruption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_medusa.errors import ConfigError
from vllm_medusa.files import atomic_path
from vllm_medusa.train.answers import (
    Answer,
    append_answers,
    cut_partial_line,
    read_answers,
)

_SHARD = re.compile(r"hidden-(\d{7})-(\d{7})\.safetensors")


@dataclass(frozen=True)
class Corpus:
    """Answers end to end, with what the base model knew before each token.

    Attributes:
        tokens: [num_tokens] int64, answer tokens only.
        hidden: [num_tokens, H] bfloat16; row i is the state that token i was drawn
            from, so head k (1-based) guesses token i + k from row i.
        answers: [num_tokens] int64, index of the answer a token belongs to.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    answers: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)


class AnswerStore:
    """A folder with answers.jsonl and, per range of answers, a hidden-state shard.

    A shard is written before its answers' lines. So on opening, a shard past the
    last line is a leftover and removed, as is a half-written line; answers without
    a shard (from another file) are listed by `ranges_without_states`.

    Args:
        folder: made if need be.
        keep_states: whether states are wanted; without, those given are dropped and
            none are missing.

    Raises:
        ConfigError: a line of answers.jsonl is malformed.
    """

    def __init__(self, folder: str | Path, *, keep_states: bool = True) -> None:
        self.folder = Path(folder)
        self.keep_states = keep_states
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "answers.jsonl"
        cut_partial_line(self.path)
        self.answers = read_answers(self.path) if self.path.is_file() else []
        for begin, end in self._shards():
            if end > len(self.answers):
                self._shard_path(begin, end).unlink()

    @property
    def num_tokens(self) -> int:
        """Answer tokens in the store."""
        return sum(len(answer.answer_token_ids) for answer in self.answers)

    def add(
        self, answers: Sequence[Answer], hidden: Sequence[torch.Tensor] | None = None
    ) -> None:
        """Append answers, with their states [num_tokens, H] each if known."""
        if not answers:
            return
        begin = len(self.answers)
        if hidden is not None and self.keep_states:
            self._write_shard(begin, answers, hidden)
        append_answers(self.path, answers)
        self.answers.extend(answers)

    def add_states(self, begin: int, hidden: Sequence[torch.Tensor]) -> None:
        """Write the states of the answers from number `begin` on."""
        answers = self.answers[begin : begin + len(hidden)]
        self._write_shard(begin, answers, hidden)

    def ranges_without_states(self, size: int) -> list[tuple[int, int]]:
        """Ranges [begin, end) of at most `size` answers whose states are missing."""
        if not self.keep_states:
            return []
        missing: list[tuple[int, int]] = []
        position = 0
        for begin, end in [*self._shards(), (len(self.answers), len(self.answers))]:
            for start in range(position, begin, size):
                missing.append((start, min(start + size, begin)))
            position = end
        return missing

    def load(self, wanted: Sequence[bool] | None = None) -> Corpus:
        """Read the answers of which `wanted` says so, all if None, into memory.

        Raises:
            ConfigError: no answer is wanted, or a shard is missing or damaged.
        """
        wanted = [True] * len(self.answers) if wanted is None else wanted
        if not any(wanted) or self.ranges_without_states(len(self.answers)):
            raise ConfigError(f"{self.folder} holds no answers with hidden states")
        tokens: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []
        answers: list[torch.Tensor] = []
        for begin, end in self._shards():
            path = self._shard_path(begin, end)
            try:
                with safe_open(path, framework="pt") as shard:
                    owner = torch.repeat_interleave(
                        torch.arange(begin, end), shard.get_tensor("lengths").long()
                    )
                    kept = torch.tensor(wanted)[owner]
                    tokens.append(shard.get_tensor("tokens").long()[kept])
                    hidden.append(shard.get_tensor("hidden")[kept])
                    answers.append(owner[kept])
            except (SafetensorError, OSError) as error:
                raise ConfigError(
                    f"{path} is damaged ({error}): delete it, it will be made again"
                ) from None
        return Corpus(torch.cat(tokens), torch.cat(hidden), torch.cat(answers))

    def _shards(self) -> list[tuple[int, int]]:
        names = (_SHARD.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted((int(m[1]), int(m[2])) for m in names if m)

    def _shard_path(self, begin: int, end: int) -> Path:
        return self.folder / f"hidden-{begin:07d}-{end:07d}.safetensors"

    def _write_shard(
        self, begin: int, answers: Sequence[Answer], hidden: Sequence[torch.Tensor]
    ) -> None:
        tokens = [token for answer in answers for token in answer.answer_token_ids]
        lengths = [len(answer.answer_token_ids) for answer in answers]
        tensors = {
            "tokens": torch.tensor(tokens, dtype=torch.int32),
            "lengths": torch.tensor(lengths, dtype=torch.int32),
            "hidden": torch.cat(list(hidden)).to(torch.bfloat16).contiguous(),
        }
        path = self._shard_path(begin, begin + len(answers))
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)
