# SPDX-License-Identifier: Apache-2.0
import torch

from tests.unit.train import toy
from vllm_medusa.train.cached_batches import CachedBatches


def batches(
    corpus: toy.Corpus, heads: int, rows: int, length: int, seed: int
) -> CachedBatches:
    return CachedBatches(
        corpus, num_heads=heads, rows_per_batch=rows, run_length=length, seed=seed
    )


def test_only_tokens_of_the_same_answer_are_targets() -> None:
    corpus = toy.corpus(6, 10)
    dealt = batches(corpus, 3, 8, 8, seed=2)
    seen = 0
    for step in range(3 * dealt.steps_per_epoch):
        batch = dealt.batch(step)
        assert batch.targets.shape == (3, 7, 8 + 3)
        assert batch.hidden(torch.device("cpu")).equal(corpus.hidden[batch.places])
        for head, run, i in (batch.targets >= 0).nonzero().tolist():
            seen += 1
            assert i < 8
            place = int(batch.places[run, i])
            ahead = place + head + 1
            assert int(batch.places[run, i + head + 1]) == ahead
            assert corpus.answers[place] == corpus.answers[ahead]
            assert batch.targets[head, run, i] == corpus.tokens[ahead]
    # 10 - 1, 10 - 2, 10 - 3 targets in each of 6 answers; the cut at the end of
    # an epoch loses less than a run of each
    assert 0.7 < seen / (3 * 6 * (9 + 8 + 7)) <= 1


def test_rows_of_a_batch() -> None:
    batch = batches(toy.corpus(), 2, 8, 16, seed=0).batch(1)
    part = batch.rows(slice(2, 6))
    assert part.targets.equal(batch.targets[:, 2:6])
    cpu = torch.device("cpu")
    assert part.hidden(cpu).equal(batch.hidden(cpu)[2:6])


def test_each_epoch_deals_every_run_once_in_a_new_order() -> None:
    corpus = toy.corpus(8, 16)
    dealt = batches(corpus, 1, 2, 16, seed=0)
    assert dealt.steps_per_epoch == 4
    epochs = []
    for epoch in (0, 1):
        steps = range(4 * epoch, 4 * epoch + 4)
        places = torch.cat([dealt.batch(step).places[:, :16] for step in steps])
        epochs.append(corpus.tokens[places])
    assert sorted(epochs[0].tolist()) == sorted(corpus.tokens.view(8, 16).tolist())
    assert epochs[0].tolist() != epochs[1].tolist()
