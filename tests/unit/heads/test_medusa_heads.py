# SPDX-License-Identifier: Apache-2.0
"""MedusaHeads against the plain reference, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.heads.support import (
    HIDDEN,
    VOCAB,
    TinyModel,
    all_specs,
    lm_head_weight,
    make_checkpoint,
    make_spec,
    spec_name,
)
from vllm_medusa.errors import CheckpointError, ConfigError, UnsupportedError
from vllm_medusa.heads import MedusaHeads, ReferenceHeads
from vllm_medusa.heads.projection import best_rows

pytestmark = pytest.mark.usefixtures("one_rank")


def check_against_reference(heads, checkpoint, lm_head, *, batch, num_heads, k):
    hidden = torch.randn(batch, HIDDEN, generator=torch.Generator().manual_seed(2))
    reference = ReferenceHeads.from_tensors(checkpoint.spec, checkpoint.tensors)
    with torch.inference_mode():
        expected = reference.top_k(hidden, num_heads, k, lm_head)
        log_probs, token_ids = heads.top_k(hidden, num_heads, k)
        best = heads.best_tokens(hidden, num_heads, k)
    assert log_probs.dtype == torch.float32 and token_ids.dtype == torch.int64
    torch.testing.assert_close(log_probs, expected[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(token_ids, expected[1])
    assert torch.equal(best, expected[1])


@pytest.mark.parametrize("spec", all_specs(), ids=spec_name)
def test_equals_the_reference(spec):
    checkpoint, weight = make_checkpoint(spec), lm_head_weight()
    heads = MedusaHeads.from_checkpoint(checkpoint, TinyModel(weight, None))
    for batch, num_heads in ((1, 3), (5, 3), (5, 1), (1, 2), (0, 3)):
        check_against_reference(
            heads, checkpoint, weight, batch=batch, num_heads=num_heads, k=10
        )


@pytest.mark.parametrize("k", [1, VOCAB])
def test_any_number_of_guesses(k):
    checkpoint = make_checkpoint(make_spec("mlp", "shared", mapped=False))
    weight = lm_head_weight()
    heads = MedusaHeads.from_checkpoint(checkpoint, TinyModel(weight, None))
    check_against_reference(heads, checkpoint, weight, batch=2, num_heads=3, k=k)


@pytest.mark.parametrize("mapped", [False, True])
def test_bias_of_the_base_lm_head_counts(mapped):
    checkpoint = make_checkpoint(make_spec("residual", "shared", mapped=mapped))
    weight, hidden = lm_head_weight(), torch.randn(2, HIDDEN)
    bias = torch.linspace(-3, 3, VOCAB)
    heads = MedusaHeads.from_checkpoint(checkpoint, TinyModel(weight, bias))
    reference = ReferenceHeads.from_tensors(checkpoint.spec, checkpoint.tensors)
    token_map = checkpoint.tensors.get("token_map", torch.arange(VOCAB))
    with torch.inference_mode():
        logits = reference(hidden, weight) + bias[token_map]
        best = logits.log_softmax(-1).topk(4)
        log_probs, token_ids = heads.top_k(hidden, 3, 4)
    torch.testing.assert_close(log_probs, best.values, atol=1e-5, rtol=1e-5)
    assert torch.equal(token_ids, token_map[best.indices])


def test_shared_projection_takes_no_memory_of_its_own():
    base = TinyModel(lm_head_weight(), None)
    checkpoint = make_checkpoint(make_spec("residual", "shared", mapped=False))
    heads = MedusaHeads.from_checkpoint(checkpoint, base)
    hidden = torch.randn(1, HIDDEN)
    best = heads.top_k(hidden, 1, VOCAB)[1]
    base.lm_head.weight.data.neg_()
    assert torch.equal(heads.top_k(hidden, 1, VOCAB)[1], best.flip(-1))


@pytest.mark.parametrize("projection", ["shared", "single", "own", "low_rank"])
def test_heads_outlive_their_checkpoint(projection):
    checkpoint = make_checkpoint(make_spec("mlp", projection, mapped=True))
    heads = MedusaHeads.from_checkpoint(checkpoint, TinyModel(lm_head_weight(), None))
    hidden = torch.randn(2, HIDDEN)
    before = heads.top_k(hidden, 3, 4)
    for tensor in checkpoint.tensors.values():
        tensor.zero_()
    after = heads.top_k(hidden, 3, 4)
    assert all(map(torch.equal, before, after))


def test_tied_embedding_serves_as_lm_head():
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        VocabParallelEmbedding,
    )

    weight, base = lm_head_weight(), nn.Module()
    base.embed_tokens = VocabParallelEmbedding(VOCAB, HIDDEN)
    base.embed_tokens.weight_loader(base.embed_tokens.weight, weight)
    checkpoint = make_checkpoint(make_spec("residual", "shared", mapped=True))
    heads = MedusaHeads.from_checkpoint(checkpoint, base)
    check_against_reference(heads, checkpoint, weight, batch=2, num_heads=3, k=5)


def test_follows_the_base_models_dtype_unless_told():
    base = TinyModel(lm_head_weight().bfloat16(), None)
    checkpoint = make_checkpoint(make_spec("mlp", "own", mapped=True))
    heads = MedusaHeads.from_checkpoint(checkpoint, base)
    assert heads.projection.weight.dtype == torch.bfloat16
    log_probs, _ = heads.top_k(torch.randn(1, HIDDEN).bfloat16(), 3, 4)
    assert log_probs.dtype == torch.float32
    told = MedusaHeads.from_checkpoint(checkpoint, base, dtype=torch.float32)
    assert told.projection.weight.dtype == torch.float32


def test_log_probabilities_are_those_of_a_distribution():
    checkpoint = make_checkpoint(make_spec("residual", "own", mapped=True))
    base = TinyModel(lm_head_weight(), None)
    heads = MedusaHeads.from_checkpoint(checkpoint, base)
    vocab = checkpoint.spec.draft_vocab_size
    log_probs, token_ids = heads.top_k(torch.randn(2, HIDDEN), 3, vocab)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3))
    assert (log_probs.diff(dim=-1) <= 0).all()
    assert sorted(token_ids[0, 0].tolist()) == sorted(
        checkpoint.tensors["token_map"].tolist()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": HIDDEN + 8}, "hidden size 33 cannot read TinyModel"),
        ({"vocab_size": VOCAB + 1}, "vocabulary of 166 tokens do not fit"),
    ],
)
def test_heads_of_another_model_are_refused(changes, message):
    spec = replace(make_spec("residual", "own", mapped=False), **changes)
    base = TinyModel(lm_head_weight(), None)
    with pytest.raises(CheckpointError, match=message):
        MedusaHeads.from_checkpoint(make_checkpoint(spec), base)


def test_token_map_beyond_the_vocabulary_is_refused():
    spec = make_spec("residual", "shared", mapped=True)
    checkpoint = make_checkpoint(spec)
    checkpoint = replace(checkpoint, spec=replace(spec, vocab_size=None))
    checkpoint.tensors["token_map"][3] = VOCAB
    with pytest.raises(CheckpointError, match=f"token_map holds token {VOCAB}"):
        MedusaHeads.from_checkpoint(checkpoint, TinyModel(lm_head_weight(), None))


def test_a_quantised_lm_head_cannot_be_shared_but_stands_beside_own_ones():
    class PackedMethod:
        pass

    base = TinyModel(lm_head_weight(), None)
    base.lm_head.quant_method = PackedMethod()
    shared = make_checkpoint(make_spec("residual", "shared", mapped=False))
    with pytest.raises(UnsupportedError, match="quantised \\(PackedMethod\\)"):
        MedusaHeads.from_checkpoint(shared, base)
    own = make_checkpoint(make_spec("residual", "own", mapped=False))
    assert MedusaHeads.from_checkpoint(own, base).spec == own.spec


def test_a_model_without_an_lm_head_is_refused():
    checkpoint = make_checkpoint(make_spec("residual", "own", mapped=False))
    with pytest.raises(UnsupportedError, match="Linear has 0 LM heads"):
        MedusaHeads.from_checkpoint(checkpoint, nn.Linear(2, 2))


@pytest.mark.parametrize("method", ["top_k", "best_tokens"])
@pytest.mark.parametrize("num_heads", [0, 4])
def test_more_heads_than_there_are_are_refused(num_heads, method):
    checkpoint = make_checkpoint(make_spec("residual", "own", mapped=False))
    base = TinyModel(lm_head_weight(), None)
    heads = MedusaHeads.from_checkpoint(checkpoint, base)
    with pytest.raises(ConfigError, match="there are 3 heads"):
        getattr(heads, method)(torch.randn(1, HIDDEN), num_heads, 2)


@pytest.mark.parametrize("method", ["top_k", "best_tokens"])
@pytest.mark.parametrize("k", [0, VOCAB + 1])
def test_more_guesses_than_tokens_are_refused(k, method):
    checkpoint = make_checkpoint(make_spec("residual", "shared", mapped=False))
    base = TinyModel(lm_head_weight(), None)
    heads = MedusaHeads.from_checkpoint(checkpoint, base)
    with pytest.raises(ConfigError, match=f"guess over {VOCAB} tokens"):
        getattr(heads, method)(torch.randn(1, HIDDEN), 1, k)


def test_best_tokens_makes_no_pass_for_probabilities():
    checkpoint = make_checkpoint(make_spec("mlp", "shared", mapped=True))
    heads = MedusaHeads.from_checkpoint(checkpoint, TinyModel(lm_head_weight(), None))
    operations = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            operations.append(function.name())
            return function(*args, **(kwargs or {}))

    with Record(), torch.inference_mode():
        heads.best_tokens(torch.randn(2, HIDDEN), 3, 4)
        assert "aten::topk" in operations
        assert not any("exp" in name for name in operations)
        heads.top_k(torch.randn(2, HIDDEN), 3, 4)
        assert any("logsumexp" in name for name in operations)


@pytest.mark.parametrize("rows", [64 * 40, 64 * 40 + 7, 64])
@pytest.mark.parametrize("k", [1, 10, 64])
def test_best_rows_is_top_k(rows, k):
    logits = torch.randperm(6 * rows).view(2, 3, rows).float()
    values, places = best_rows(logits, k)
    expected = logits.topk(k)
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)
