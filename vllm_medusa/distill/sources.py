# SPDX-License-Identifier: Apache-2.0
"""Sources: conversations by their number, in an order that the seed gives."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from vllm_medusa.distill.conversation import Conversation
from vllm_medusa.distill.hub import hub_conversations
from vllm_medusa.distill.options import DistillOptions
from vllm_medusa.distill.readers import prompt_conversations, sharegpt_conversations
from vllm_medusa.distill.source_option import SourceOption
from vllm_medusa.distill.templates import template_prompt
from vllm_medusa.prompts import normalised, whole_characters
from vllm_medusa.reading import local_path


class Source(Protocol):
    """Where prompts come from."""

    @property
    def label(self) -> str:
        """Its name, unique in the run."""

    @property
    def weight(self) -> float:
        """Its share of the answers, relative to the other sources' weights."""

    def get(self, position: int) -> Conversation | None:
        """The conversation at a position from 0 on, None behind the last one."""


@dataclass(frozen=True)
class ListedSource:
    """Conversations that were read, shuffled."""

    label: str
    weight: float
    conversations: tuple[Conversation, ...]

    def get(self, position: int) -> Conversation | None:
        """As `Source.get`."""
        if position >= len(self.conversations):
            return None
        return replace(self.conversations[position], position=position)


@dataclass(frozen=True)
class TemplateSource:
    """Templates filled at random, without end."""

    label: str
    weight: float
    task: str
    seed: int

    def get(self, position: int) -> Conversation | None:
        """As `Source.get`."""
        rng = random.Random(f"{self.seed}/{self.label}/{position}")
        name = f"{self.label}/{position}"
        return Conversation(
            name, self.label, self.task, (template_prompt(rng),), position=position
        )


@dataclass(frozen=True)
class WrittenSource:
    """Prompts that the model is to write itself: no text yet."""

    label: str
    weight: float
    task: str

    def get(self, position: int) -> Conversation | None:
        """As `Source.get`, with an empty `user_turns`."""
        name = f"{self.label}/{position}"
        return Conversation(name, self.label, self.task, (), position=position)


@dataclass(frozen=True)
class Sources:
    """All sources of a run.

    Attributes:
        all: in the order of the options.
        listed: normalised prompts of all that were read.
        digest: SHA-256 of what was read, in hexadecimal.
        duplicates: prompts left out, since they had been read before.
    """

    all: tuple[Source, ...]
    listed: frozenset[str]
    digest: str
    duplicates: int

    @property
    def num_listed(self) -> int:
        """Prompts that were read and are no duplicates."""
        return len(self.listed)


def read_sources(options: DistillOptions) -> Sources:
    """Read all that can be read, without duplicates, and shuffle it.

    A prompt stays with the first source that has it.

    Raises:
        ConfigError: a source can't be read.
    """
    sources: list[Source] = []
    listed: set[str] = set()
    digest = hashlib.sha256()
    duplicates = 0
    for option, label in zip(options.sources, options.labels, strict=True):
        task = option.task or label
        if option.kind == "templates":
            sources.append(TemplateSource(label, option.weight, task, options.seed))
            continue
        if option.kind == "self":
            sources.append(WrittenSource(label, option.weight, task))
            continue
        kept = []
        for conversation in map(_sound, _read(option, label, task)):
            digest.update(repr((label, conversation)).encode())
            prompt = normalised(conversation.user_turns[0])
            if prompt in listed:
                duplicates += 1
                continue
            listed.add(prompt)
            kept.append(conversation)
        random.Random(f"{options.seed}/{label}").shuffle(kept)
        sources.append(ListedSource(label, option.weight, tuple(kept)))
    return Sources(tuple(sources), frozenset(listed), digest.hexdigest(), duplicates)


def _read(option: SourceOption, label: str, task: str) -> Sequence[Conversation]:
    if option.kind == "hf":
        return hub_conversations(option, label, task)
    path: Path = local_path(option.location)
    if option.kind == "sharegpt":
        return sharegpt_conversations(path, label, task)
    return prompt_conversations(path, label, task)


def _sound(conversation: Conversation) -> Conversation:
    """The conversation without halves of characters."""
    system = conversation.system
    return replace(
        conversation,
        user_turns=tuple(map(whole_characters, conversation.user_turns)),
        system=None if system is None else whole_characters(system),
    )
