# SPDX-License-Identifier: Apache-2.0
"""Requests that end with the model's own end-of-text token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers
from tests.engine.support.engines import engine, generate, stats
from tests.engine.support.models import EOS
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT = sample(40, 16)


def test_end_of_text(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    tmp_path: Path,
) -> None:
    """A model that says EOS where `llama` says one of its most frequent tokens."""
    frequent = torch.tensor(plain[:COUNT]).flatten().bincount().argmax()
    model = AutoModelForCausalLM.from_pretrained(llama.path, dtype=torch.float32)
    with torch.no_grad():
        head = model.lm_head.weight
        head[EOS] = 1.01 * head[frequent]
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama.path).save_pretrained(tmp_path)
    params = SamplingParams(temperature=0.0, max_tokens=sample(40, 24))
    with engine(tmp_path) as llm:
        expected = answers(generate(llm, prompts[:COUNT], params))
    with engine(tmp_path, {"model": llama.heads, "tree": "optimal:12"}) as llm:
        assert answers(generate(llm, prompts[:COUNT], params)) == expected
        assert stats(llm)["accepted"] > 0
    by_eos = [a for (a,) in expected if a["finish_reason"] == "stop"]
    assert len(by_eos) > COUNT // 8
    assert all(a["tokens"][-1] == EOS for a in by_eos)
