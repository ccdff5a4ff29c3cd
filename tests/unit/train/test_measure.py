# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.unit.train import toy
from vllm_medusa.train.measure import (
    MISSED,
    NO_TARGET,
    accuracies,
    before_loops,
    rank_of_truth,
    tokens_per_step,
    top_1,
)
from vllm_medusa.train.store import Corpus
from vllm_medusa.tree import TokenTree, chain


def test_ranks_against_a_loop_over_positions() -> None:
    corpus = toy.corpus(3, 7)
    heads = toy.heads()
    with torch.no_grad():
        heads.blocks["0_down_weight"].normal_()
        scores = heads.logits(heads.states(corpus.hidden))
    ranks = rank_of_truth(heads, corpus)
    for head in range(2):
        for i in range(len(corpus)):
            j = i + head + 1
            if j >= len(corpus) or corpus.answers[j] != corpus.answers[i]:
                expected = NO_TARGET
            else:
                order = heads.token_map[scores[head, i].argsort(descending=True)]
                best = order[:10].tolist()
                truth = int(corpus.tokens[j])
                expected = best.index(truth) if truth in best else MISSED
            assert ranks[head, i] == expected


def test_accuracies_are_marginal_per_rank() -> None:
    ranks = torch.tensor([[0, 0, 1, MISSED, NO_TARGET], [2, 2, 0, NO_TARGET, -1]])
    table = accuracies(ranks)
    assert table[0] == pytest.approx([0.5, 0.25] + 8 * [0])
    assert table[1] == pytest.approx([1 / 3, 0, 2 / 3] + 7 * [0])
    assert top_1(ranks) == pytest.approx([0.5, 1 / 3])
    some = accuracies(ranks, torch.tensor([True, False, True, False, False]))
    assert some[0] == pytest.approx([0.5, 0.5] + 8 * [0])


def test_positions_before_loops() -> None:
    plain = list(range(12))
    loop = [1, 2, 3, 4] * 6
    tokens = torch.tensor(plain + loop)
    owner = torch.tensor([4] * len(plain) + [7] * len(loop))
    clean = before_loops(Corpus(tokens, torch.zeros(len(tokens), 1), owner))
    assert clean[: len(plain)].all()
    # the second window of 8 equal to an earlier one ends at index 11
    assert int(clean[len(plain) :].sum()) == 11
    assert clean[len(plain) : len(plain) + 11].all()


def test_tokens_per_step_of_a_walk_done_by_hand() -> None:
    miss, end = MISSED, NO_TARGET
    # answer of 6 tokens; head 1's and head 2's rank of the truth at each position
    ranks = torch.tensor([[0, 0, 1, miss, 0, end], [1, 0, 0, 0, end, end]])
    # chain of 2: 0 accepts 1 token -> 2 accepts none -> 3 none -> 4 one -> done
    assert tokens_per_step(ranks, chain(2)) == pytest.approx(6 / 4)
    # with head 1's second guess: 2 accepts it, and head 2's first guess below it
    tree = TokenTree.from_paths([(0,), (1,), (0, 1), (1, 0)])
    # 0 accepts (0, 1), three tokens -> 3 none -> 4 one
    assert tokens_per_step(ranks, tree) == pytest.approx(6 / 3)
    wanted = torch.tensor([False, True, True, True, False, False])
    assert tokens_per_step(ranks, tree, wanted) == 1
