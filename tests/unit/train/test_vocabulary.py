# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from vllm_medusa.train.heads_loss import head_weights
from vllm_medusa.train.vocabulary import (
    inverse_map,
    most_frequent_tokens,
    sample_vocabulary,
)


def test_head_weights_decay() -> None:
    weights = head_weights(4, 0.8)
    assert weights.sum().item() == pytest.approx(1)
    assert (weights[1:] / weights[:-1]).tolist() == pytest.approx([0.8] * 3)


def test_most_frequent_tokens_first_ties_by_id() -> None:
    tokens = torch.tensor([7, 3, 3, 9, 7, 3, 5])
    assert most_frequent_tokens(tokens, 12, 5).tolist() == [3, 7, 5, 9, 0]
    inverse = inverse_map(torch.tensor([3, 7]), 9)
    assert inverse.tolist() == [-1, -1, -1, 0, -1, -1, -1, 1, -1]


def test_sampled_vocabulary_holds_targets_and_keeps_the_denominator() -> None:
    targets = torch.tensor([[90, -1], [3, 95]])
    scores = torch.linspace(-2, 2, 100)
    sums = []
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        sample = sample_vocabulary(100, 40, targets, generator)
        assert len(sample.ids) == len(set(sample.ids.tolist())) == 40
        assert set(range(20)) | {90, 95} <= set(sample.ids.tolist())
        assert sample.ids[sample.position[sample.ids]].equal(sample.ids)
        assert int((sample.position >= 0).sum()) == 40
        sums.append((scores[sample.ids] + sample.correction).exp().sum().item())
    full = scores.exp().sum().item()
    assert math.isclose(sum(sums) / len(sums), full, rel_tol=0.02)


def test_sampled_vocabulary_of_full_size_is_everything() -> None:
    sample = sample_vocabulary(10, 10, torch.tensor([1]), torch.Generator())
    assert sample.ids.tolist() == list(range(10))
    assert not sample.correction.any()
