# SPDX-License-Identifier: Apache-2.0
"""Beam trees: the search against one written with loops."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vllm_medusa.errors import TreeError
from vllm_medusa.tree import BeamTree, TokenTree, parse_tree


def beam_by_hand(
    log_probs: torch.Tensor, width: int, depth: int
) -> dict[tuple[int, ...], float]:
    """Kept candidates as paths of ranks, with their log-probabilities."""
    kept: dict[tuple[int, ...], float] = {}
    level: dict[tuple[int, ...], float] = {(): 0.0}
    for head in range(depth):
        grown = {
            (*path, rank): score + float(log_probs[head, rank])
            for path, score in level.items()
            for rank in range(log_probs.shape[1])
        }
        level = dict(sorted(grown.items(), key=lambda item: -item[1])[:width])
        kept |= level
    return kept


def paths(parents: torch.Tensor, tokens: torch.Tensor) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for parent, token in zip(parents[1:].tolist(), tokens.tolist(), strict=True):
        found.append((*found[parent], token))
    return found[1:]


@pytest.mark.parametrize(("width", "depth"), [(1, 3), (2, 1), (3, 4), (10, 2)])
def test_is_a_beam_search(width: int, depth: int) -> None:
    beam = BeamTree(width, depth)
    generator = torch.Generator().manual_seed(width * depth)
    logits = torch.randn(6, depth, 12, generator=generator).double() * 3
    # The token is its rank, one less each head: a head's ranks can be told apart.
    log_probs = logits.log_softmax(-1).sort(-1, descending=True).values
    ranks = torch.arange(12).expand(6, depth, -1)
    tokens, parents = beam.build(log_probs, ranks)
    assert tokens.shape == (6, beam.num_nodes)
    assert parents.dtype == torch.int32
    for request in range(6):
        expected = beam_by_hand(log_probs[request], width, depth)
        found = paths(parents[request], tokens[request])
        assert set(found) == set(expected)
        # Best first, which the cut by the batch table relies on.
        scores = [expected[path] for path in found]
        assert scores == sorted(scores, reverse=True)
        # A tree that the runners take: parents before children.
        TokenTree((-1, *parents[request, 1:].tolist()), (-1, *tokens[request].tolist()))


def test_requests_do_not_mix() -> None:
    log_probs = torch.randn(5, 3, 4).log_softmax(-1).sort(-1, descending=True).values
    tokens = torch.randint(0, 99, (5, 3, 4))
    together = BeamTree(4, 3).build(log_probs, tokens)
    for request in range(5):
        one = slice(request, request + 1)
        alone = BeamTree(4, 3).build(log_probs[one], tokens[one])
        assert torch.equal(together[0][one], alone[0])
        assert torch.equal(together[1][one], alone[1])


def test_impossible_tokens_come_last() -> None:
    """A rank's part of the vocabulary may be padded: -inf."""
    log_probs = torch.tensor([[[-0.1, -torch.inf], [-0.2, -torch.inf]]])
    tokens, parents = BeamTree(2, 2).build(log_probs, torch.arange(4).view(1, 2, 2))
    assert tokens[0, :2].tolist() == [0, 2]
    assert parents[0, :3].tolist() == [0, 0, 1]
    assert all(parent < row for row, parent in enumerate(parents[0, 1:].tolist(), 1))


def test_the_fixed_tree_has_the_beams_size() -> None:
    for width, depth in [(1, 1), (5, 3), (10, 4), (64, 16)]:
        tree = BeamTree(width, depth).fixed_tree()
        assert tree.nodes_per_depth == (width,) * depth
        assert parse_tree(f"beam:{width}x{depth}", num_heads=depth) == tree


def test_text() -> None:
    assert BeamTree.parse("beam:5x3") == BeamTree(5, 3)
    assert BeamTree(5, 3).text == "beam:5x3"
    for other in ["beam:5", "beam:5x3x2", "5x3", "beam:-1x2", None, ((0,),)]:
        assert BeamTree.parse(other) is None
    with pytest.raises(TreeError, match="1 to 64"):
        BeamTree.parse("beam:65x1")


def test_no_value_is_needed_on_the_host() -> None:
    with FakeTensorMode():
        tokens, _ = BeamTree(3, 2).build(
            torch.zeros(4, 2, 5), torch.zeros(4, 2, 5, dtype=torch.int64)
        )
    assert tokens.shape == (4, 6)
