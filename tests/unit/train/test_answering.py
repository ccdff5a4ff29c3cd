# SPDX-License-Identifier: Apache-2.0
"""What is found out about included answers before an engine starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.train import tiny_base
from tests.unit.train.medusa2.tiny import Silence
from tests.unit.train.test_pipeline import options
from vllm_medusa.errors import ConfigError
from vllm_medusa.train import answering
from vllm_medusa.train.answers import Answer, append_answers
from vllm_medusa.train.generate import GenerateOptions


class Engine:
    """Stands in for `Generator`; keeps the options it was started with."""

    started: list[GenerateOptions]

    def __init__(self, model: str, options: GenerateOptions) -> None:
        self.options = options
        self.started.append(options)

    def states_of(self, answers: list[Answer]) -> list[torch.Tensor]:
        return [torch.zeros(len(a.answer_token_ids), 4) for a in answers]

    def close(self) -> None: ...


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[GenerateOptions]:
    monkeypatch.setattr(Engine, "started", [], raising=False)
    monkeypatch.setattr(answering, "Generator", Engine)
    return Engine.started


def make(folder: Path, answer: Answer, **generate: int) -> None:
    base = tiny_base.save(folder / "base", max_position_embeddings=2000)
    append_answers(folder / "given.jsonl", [answer])
    given = options(
        folder,
        model=str(base),
        answers=(folder / "given.jsonl",),
        generate=GenerateOptions(**generate),
    )
    answering.make_answers(given, Silence(), may_generate=True)


@pytest.mark.parametrize(("length", "context"), [(100, 1024), (1500, 1506)])
def test_context_follows_the_answers(
    tmp_path: Path, started: list[GenerateOptions], length: int, context: int
) -> None:
    make(tmp_path, Answer("p", [1] * length, [2] * 5))
    assert [options.context for options in started] == [context]


@pytest.mark.parametrize(
    ("answer", "generate", "message"),
    [
        (Answer("p", [1] * 300, [2]), {"max_model_len": 300}, "raise it to 302"),
        (Answer("p", [1] * 2000, [2]), {}, "the model's context of 2000"),
        (Answer("p", [tiny_base.VOCAB], [2]), {}, "answers of another model"),
    ],
)
def test_unfit_answers_are_refused_at_once(
    tmp_path: Path,
    started: list[GenerateOptions],
    answer: Answer,
    generate: dict[str, int],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, answer, **generate)
    assert not started
