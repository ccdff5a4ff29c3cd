# SPDX-License-Identifier: Apache-2.0
"""What plain vLLM answers, from an engine in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common.engines import ROOT
from benchmarks.common.variants import WITHOUT_PLUGINS
from benchmarks.soaking.answers import Answer, read_answer
from benchmarks.soaking.asks import Ask, sampling_params
from vllm_medusa.engines.jobs import Job, serve
from vllm_medusa.engines.process import EngineProcess

if TYPE_CHECKING:
    from vllm import LLM


def answer(llm: LLM, asks: list[dict[str, Any]]) -> list[Any]:
    """Answer requests in one batch; each answer as `Answer.as_dict` gives it."""
    read = [Ask(**ask) for ask in asks]
    outputs = llm.generate(
        [{"prompt_token_ids": ask.prompt} for ask in read],
        [sampling_params(ask.params) for ask in read],
        use_tqdm=False,
    )
    answers = []
    for ask, output in zip(read, outputs, strict=True):
        gathered = Answer(ask.params.get("n", 1))
        gathered.add(output)
        answers.append(gathered.as_dict())
    return answers


def plain_answers(
    asks: Sequence[Ask], arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Answer]:
    """What vLLM without plugins answers to the exact ones of `asks`, by name.

    `arguments` are those of `LLM`. EngineError if the engine fails.
    """
    exact = [ask for ask in asks if ask.is_exact]
    with tempfile.TemporaryDirectory() as folder:
        engine = EngineProcess(
            "plain",
            "benchmarks.soaking.reference",
            arguments,
            {**environment, **WITHOUT_PLUGINS},
            Path(folder) / "plain.log",
            ROOT,
        )
        with engine:
            engine.wait_until_ready()
            rows = engine.call(
                "answer", settle=False, asks=[ask.as_dict() for ask in exact]
            )
            engine.finish()
    return {ask.name: read_answer(row) for ask, row in zip(exact, rows, strict=True)}


JOBS: dict[str, Job] = {"answer": answer}


if __name__ == "__main__":
    serve(JOBS)
