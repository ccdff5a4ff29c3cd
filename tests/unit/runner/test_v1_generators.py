# SPDX-License-Identifier: Apache-2.0
"""Noise of seeded requests on tree rows, against drawing one token after the other."""

from __future__ import annotations

import random

import pytest
import torch
from vllm.v1.sample.sampler import Sampler

from tests.unit.runner.v1_steps import VOCAB_SIZE, RandomStep, metadata
from vllm_medusa.runner.v1.generators import RowGenerators
from vllm_medusa.runner.v1.rows import row_metadata


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(sampler: Sampler, logits: torch.Tensor, generators: dict) -> list[int]:
    values = metadata(
        len(logits),
        temperature=torch.ones(len(logits)),
        all_greedy=False,
        all_random=True,
        generators=generators,
    )
    return sampler.sample(logits.clone(), values)[0].tolist()


@pytest.mark.parametrize("native", [False, True], ids=["CPU", "native"])
@pytest.mark.parametrize("seed", range(12))
def test_each_row_has_the_noise_of_its_position(seed: int, native: bool) -> None:
    """vLLM has two ways to draw on a CPU; they take different numbers of a generator.
    Steps of random trees follow each other, and random rows are accepted."""
    rng = random.Random(seed)
    sampler = Sampler(use_fp64_gumbel=native)
    generators, drawn = {1: seeded(5), 3: seeded(6)}, {1: 0, 3: 0}
    logits = torch.zeros(1, VOCAB_SIZE)
    for _ in range(4):
        step = RandomStep(rng)
        rows = step.rows()
        by_row = RowGenerators(generators, rows, sampler, VOCAB_SIZE)
        owners = rows.owners.tolist()
        assert by_row.by_row.keys() == {
            row for row, owner in enumerate(owners) if owner in generators
        }
        values = row_metadata(metadata(5), rows.owners, by_row.by_row)
        tokens = draw(sampler, logits.repeat(len(owners), 1), values.generators)
        depths = [
            len(text) - len(step.requests[owner].output_token_ids)
            for owner, text in zip(owners, step.texts(), strict=True)
        ]
        last_rows = [
            rng.choice([row for row, owner in enumerate(owners) if owner == index])
            for index in range(5)
        ]
        for index, generator_seed in ((1, 5), (3, 6)):
            plain = seeded(generator_seed)
            expected = [draw(sampler, logits, {0: plain})[0] for _ in range(40)]
            for row, owner in enumerate(owners):
                if owner == index:
                    assert tokens[row] == expected[drawn[index] + depths[row]]
            drawn[index] += depths[last_rows[index]] + 1
        by_row.commit(last_rows)
