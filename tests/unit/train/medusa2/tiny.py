# SPDX-License-Identifier: Apache-2.0
"""A tiny model that has learnt a tiny language, and answers that it wrote itself.

In the language each letter follows from the one before the last, with an error now and
then. So what comes after the next letter hangs on the present one, which a model need
not remember to tell the next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tests.engine.support.models import BOS, EOS, VOCAB_SIZE, build_tokenizer
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.compute_options import ComputeOptions
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.medusa2.options import (
    AdapterOptions,
    JointOptions,
    Medusa2Options,
)
from vllm_medusa.train.medusa2.quality import Bounds
from vllm_medusa.train.options import HeadsOptions

FIRST, LETTERS = 40, 40
"""Token ids FIRST .. FIRST + LETTERS - 1 are the letters."""

PROMPT, LENGTH = 5, 36
"""Tokens of a prompt and of an answer."""


def texts(count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Texts of the language, [count, length] token ids."""
    follower = torch.randperm(LETTERS, generator=torch.Generator().manual_seed(0))
    text = torch.randint(LETTERS, (count, length), generator=generator)
    for place in range(3, length):
        right = torch.rand(count, generator=generator) > 0.1
        following = follower[text[:, place - 2]]
        text[:, place] = torch.where(right, following, text[:, place])
    text += FIRST
    text[:, 0] = BOS
    return text


def tokens_of(answers: Sequence[Answer]) -> torch.Tensor:
    """The answers end to end, [num_tokens]."""
    return torch.tensor([token for a in answers for token in a.answer_token_ids])


def build_model(folder: Path, *, tied: bool = False, steps: int = 200) -> Path:
    """Make a tiny Llama, teach it the language, and save it with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 8e-3 * (1 - step / steps)
        batch = texts(32, 24, generator)
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    build_tokenizer(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    """The model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@cache
def written(folder: Path, count: int) -> tuple[Answer, ...]:
    """Answers of the model to `count` prompts, drawn at temperature 1."""
    generator = torch.Generator().manual_seed(1)
    prompts = texts(count, PROMPT, generator)
    torch.manual_seed(1)
    with torch.no_grad():
        rows = load(folder).generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            max_new_tokens=LENGTH,
            min_new_tokens=LENGTH,
        )
    return tuple(
        Answer(
            prompt=f"prompt {number}",
            answer_token_ids=row[PROMPT:],
            prompt_token_ids=row[:PROMPT],
            temperature=1.0,
        )
        for number, row in enumerate(rows.tolist())
    )


def write_answers(path: Path, answers: tuple[Answer, ...]) -> Path:
    """Write a file that `--answers` takes."""
    path.write_text("".join(json.dumps(asdict(a)) + "\n" for a in answers))
    return path


def options(
    model: Path, answers: tuple[Path, ...], folder: Path, **changes: Any
) -> Medusa2Options:
    """A run in float32 with short rows; `changes` are to options of any kind."""
    values: dict[str, Any] = {
        "mixed_precision": "no",
        "hidden_states": "live",
        "sequence_length": 128,
        "batch_size": 512,
        "epochs": 0.5,
        "heads_epochs": 0.5,
        "measure_every": 5,
        "held_out": 0.2,
        "num_heads": 2,
        "block": "residual",
        "projection": "shared",
        "draft_vocab": VOCAB_SIZE,
    } | changes

    def taken(kind: Any, **fixed: Any) -> Any:
        names = {field.name for field in fields(kind)} & set(values)
        return kind(**{name: values.pop(name) for name in sorted(names)}, **fixed)

    made = {
        "bounds": taken(Bounds),
        "adapters": taken(AdapterOptions),
        "fit": taken(FitOptions),
        "joint": taken(JointOptions),
        "compute": taken(ComputeOptions),
        "heads": taken(HeadsOptions),
    }
    return Medusa2Options(
        model=str(model),
        output=folder / "output",
        work=folder / "work",
        answers=answers,
        **made,
        **values,
    )


class Silence:
    """Progress that nobody sees."""

    def stage(self, name: str, total: int) -> None:
        """Nothing."""

    def advance_to(self, done: int) -> None:
        """Nothing."""
