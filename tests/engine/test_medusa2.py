# SPDX-License-Identifier: Apache-2.0
"""What Medusa-2 writes, in transformers, in plain vLLM, and with the plugin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.unit.train.medusa2 import tiny
from vllm_medusa.train.medusa2.pipeline import train

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="what is written is the same; V2 serves any heads"),
]

LENGTH = 24


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("medusa2")
    base = tiny.build_model(folder / "base")
    file = tiny.write_answers(folder / "answers.jsonl", tiny.written(base, 300))
    options = tiny.options(
        base,
        (file,),
        folder,
        kind="full",
        schedule="one-stage",
        epochs=12.0,
        heads_weight=1.0,
        backbone_learning_rate=5e-3,
        head_multiple=2.0,
        hard_weight=1.0,
        projection="single",
        draft_vocab=80,
        max_perplexity_increase=0.1,
        measure_every=100,
    )
    train(options, tiny.Silence())
    return options.output


def test_backbone_and_heads_serve(output: Path) -> None:
    prompts = tiny.texts(6, 12, torch.Generator().manual_seed(4))
    with engine(output / "backbone") as llm:
        plain = token_ids(generate(llm, prompts.tolist(), greedy(LENGTH)))
    medusa = {"model": output / "heads"}  # with the tree that lies beside them
    with engine(output / "backbone", medusa) as llm:
        texts = token_ids(generate(llm, prompts.tolist(), greedy(LENGTH)))
        counters = stats(llm)
    assert texts == plain
    # Nearly every step has two tokens or more: chance would be one in five.
    assert counters["accepted"] > 0.7 * counters["trees"]
    model = tiny.load(output / "backbone")
    with torch.no_grad():
        rows = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=LENGTH,
            eos_token_id=None,
        )
    assert rows[:, prompts.shape[1] :].tolist() == plain
