# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of characters and an engine without a model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vllm_medusa.distill import run
from vllm_medusa.distill.options import DistillOptions
from vllm_medusa.distill.requests import Request
from vllm_medusa.distill.source_option import SourceOption

BEGIN, END = 1, 2


class ToyTokenizer:
    """Frames as ChatML does; ids are character codes."""

    chat_template = "chatml"
    name_or_path = "toy"
    eos_token_id = END
    all_special_ids = (BEGIN, END)

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, str]],
        *,
        add_generation_prompt: bool,
        tokenize: bool = True,
        return_dict: bool = False,
    ) -> Any:
        frames = (f"\x01{m['role']}\n{m['content']}\x02\n" for m in messages)
        text = "".join(frames) + "\x01assistant\n" * add_generation_prompt
        return self.encode(text) if tokenize else text

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        special = self.all_special_ids if skip_special_tokens else ()
        return "".join(chr(token) for token in ids if token not in special)


class ToyEngine:
    """Words drawn by the request's seed, or by its text where it is greedy.

    Args:
        on_call: called before each `complete` with the number of calls before it.
        whole: share of texts that come to their end.
    """

    def __init__(
        self, on_call: Callable[[int], object] = lambda call: None, whole: float = 0.8
    ) -> None:
        self.requests: list[Request] = []
        self.is_closed = False
        self._on_call = on_call
        self._whole = whole
        self._calls = 0

    def complete(self, requests: Sequence[Request]) -> list[list[int]]:
        self._on_call(self._calls)
        self._calls += 1
        self.requests += requests
        return [self._tokens(request) for request in requests]

    def close(self) -> None:
        self.is_closed = True

    def _tokens(self, request: Request) -> list[int]:
        key = request.seed if request.temperature else tuple(request.token_ids)
        rng = random.Random(str(key))
        letters = rng.choices("abcdefgh ", k=rng.randint(14, 20))
        tokens = [ord(letter) for letter in letters]
        if rng.random() < self._whole:
            return [*tokens, END]
        return (tokens * request.max_tokens)[: request.max_tokens]


def use(patch: pytest.MonkeyPatch, engine: ToyEngine) -> ToyEngine:
    """Let `run.distill` start `engine`."""
    patch.setattr(run, "start_engine", lambda options: engine)
    patch.setattr(run, "_load_tokenizer", lambda model: ToyTokenizer())
    patch.setattr(run, "end_token_ids", lambda model, tokenizer: [END])
    return engine


class NoProgress:
    def stage(self, name: str, total: int) -> None:
        pass

    def advance_to(self, done: int) -> None:
        pass


def options(output: Path, **changes: Any) -> DistillOptions:
    values: dict[str, Any] = {
        "model": "toy",
        "output": output,
        "max_answer_tokens": 30,
        "max_model_len": 1000,
        "shard_prompts": 10,
    }
    return DistillOptions(**(values | changes))


def mixed(folder: Path, output: Path, **changes: Any) -> DistillOptions:
    """Sources of all kinds, two turns, two samples."""
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"Tell me of {n} things\n" for n in range(12)))
    chats = folder / "chats.json"
    turns = [[f"tell me of {n} things", "and?"] for n in range(10, 20)]
    records = [
        {"conversations": [{"from": "human", "value": text} for text in texts]}
        for texts in turns
    ]
    chats.write_text(json.dumps(records))
    sources = (
        SourceOption("prompts", str(prompts), weight=2, task="things"),
        SourceOption("sharegpt", str(chats)),
        SourceOption("templates"),
        SourceOption("self"),
    )
    values = {
        "sources": sources,
        "turns": 2,
        "samples": 2,
        "num_prompts": 44,
        **changes,
    }
    return options(output, **values)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
