# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa calibrate` on a tiny model, through real vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm import LLM

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats
from tests.runner import sample, slow_on_v2
from vllm_medusa.calibration import probe
from vllm_medusa.calibration.accuracy import (
    CalibrationPrompt,
    PlainAnswer,
    measure_accuracies,
)
from vllm_medusa.calibration.options import CalibrationOptions
from vllm_medusa.calibration.prompts import TaskPrompt
from vllm_medusa.calibration.result import CalibrationResult
from vllm_medusa.calibration.run import Calibration
from vllm_medusa.checkpoint import load_heads
from vllm_medusa.heads.reference import ReferenceHeads
from vllm_medusa.json_file import write_json
from vllm_medusa.tree import optimal

pytestmark = [pytest.mark.engine, slow_on_v2]

TASKS = ("letters", "digits")


@contextmanager
def start(arguments: dict[str, Any]) -> Iterator[LLM]:
    """As a calibration starts its engines, with the tests' small memory."""
    options = dict(arguments)
    model, medusa = options.pop("model"), options.pop("speculative_config")
    with engine(model, medusa, **options) as llm:
        yield llm


@pytest.fixture(scope="module")
def result(llama: TinyModel) -> CalibrationResult:
    options = CalibrationOptions(
        batch_sizes=(1, 3),
        node_counts=(1, 2, 4, 6),
        steps=2,
        repeats=1,
        max_tokens=sample(40, 12),
        max_model_len=200,
        by_task=True,
    )
    prompts = [
        TaskPrompt(({"role": "user", "content": text},), task)
        for text, task in zip(("abcd efgh", "0123"), TASKS, strict=True)
    ]
    checkpoint = load_heads(llama.heads)
    calibration = Calibration(
        str(llama.path), checkpoint, None, options, start, lambda text: None
    )
    return calibration.run(prompts)


def test_costs_and_tokens_of_every_number_of_nodes(result: CalibrationResult) -> None:
    assert set(result.costs) == {1, 3}
    for row in result.costs.values():
        assert {0, 1, 2} <= set(row) <= {0, 1, 2, 4, 6}
        assert all(seconds > 0 for seconds in row.values())
    nodes, measured = result.measured
    assert (nodes, list(result.tokens_per_step)) == (6, [0, 1, 2, 4, 6])
    assert result.tokens_per_step[6] == pytest.approx(max(1.0, measured))
    # The heads are fitted to this model, and repeat what they were fitted to.
    assert measured > 1.3
    assert result.table[0][0] == 1


def test_tasks_add_up(result: CalibrationResult) -> None:
    parts = [sums for sums, _ in result.by_task.values()]
    assert list(result.by_task) == list(TASKS)
    assert (parts[0] + parts[1]).positions == result.total.positions


def test_the_engine_takes_what_was_written(
    llama: TinyModel, result: CalibrationResult, tmp_path: Path
) -> None:
    """Beside the heads the file alone decides tree and table."""
    heads = tmp_path / "heads"
    heads.mkdir()
    for file in llama.heads.iterdir():
        (heads / file.name).symlink_to(file)
    content = result.as_dict()
    # Whatever this machine's costs are today.
    paths = [list(path) for path in optimal(content["accuracy"], 6).paths]
    content |= {"num_speculative_tokens_per_batch_size": [[1, 1, 4], [2, 9, 0]]}
    write_json(heads / "calibration.json", content | {"paths": paths})
    prompts = [[1, 40, 41, 42], [1, 50, 51]]
    with engine(llama.path, {"model": heads}) as llm:
        config = llm.llm_engine.vllm_config.speculative_config
        assert config.num_speculative_tokens == 6
        for load, nodes in ((1, 4), (2, 0)):
            before = stats(llm)
            generate(llm, prompts[:load], greedy(8))
            after = stats(llm)
            trees = after["trees"] - before["trees"]
            assert (trees > 0) == (nodes > 0)
            assert after["nodes"] - before["nodes"] <= nodes * trees
    assert json.loads((heads / "calibration.json").read_text())["machine"]["cpu"]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_accuracies_are_those_of_transformers(
    llama: TinyModel, temperature: float
) -> None:
    """Position by position, by the definition, with other code for model and heads."""
    prompt = [1, 40, 41, 42, 43]
    answer = torch.randint(3, 300, (sample(30, 12),)).tolist()
    probed = {"worker_extension_cls": probe.EXTENSION, "enable_prefix_caching": False}
    with engine(llama.path, {"model": llama.heads, "tree": "chain:1"}, **probed) as llm:
        answers = [PlainAnswer(CalibrationPrompt(prompt), answer)]
        sums = measure_accuracies(llm, answers, temperature, num_ranks=4)[None]

    model = AutoModelForCausalLM.from_pretrained(llama.path, dtype=torch.float32)
    checkpoint = load_heads(llama.heads)
    heads = ReferenceHeads.from_tensors(checkpoint.spec, checkpoint.tensors)
    with torch.no_grad():
        states = model.model(torch.tensor([prompt + answer])).last_hidden_state[0]
        logits = model.lm_head(states)
        _, guesses = heads.top_k(
            states, checkpoint.spec.num_heads, 4, model.lm_head.weight
        )
    first = len(prompt) - 1
    for head in range(checkpoint.spec.num_heads):
        expected = torch.zeros(4)
        for row in range(len(answer) - head - 1):
            law = logits[first + row + head + 1]
            for rank in range(4):
                token = guesses[first + row, head, rank]
                if temperature:
                    expected[rank] += (law / temperature).softmax(-1)[token]
                else:
                    expected[rank] += float(law.argmax() == token)
        assert sums.mass[head] == pytest.approx(expected.tolist(), abs=1e-3)
        assert sums.positions[head] == len(answer) - head - 1
