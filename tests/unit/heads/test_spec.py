# SPDX-License-Identifier: Apache-2.0
"""HeadsSpec: what it refuses, and the tensors it lists."""

from __future__ import annotations

import pytest

from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.heads import HeadsSpec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_heads": 65}, "at most 64"),
        ({"num_layers": 65}, "at most 64"),
        ({"hidden_size": -4}, "hidden_size must be at least 1"),
        ({"block": "mlp"}, "intermediate_size"),
        ({"intermediate_size": 4}, "intermediate_size"),
        ({"projection": "low_rank"}, "rank"),
        ({"rank": 2}, "rank"),
        ({"block": "dense"}, "unknown block 'dense'"),
        ({"projection": "tied"}, "unknown projection 'tied'"),
        ({"vocab_size": 8, "draft_vocab_size": 9}, "larger than the base vocabulary"),
    ],
)
def test_impossible_specs_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HeadsSpec(**{"num_heads": 2, "hidden_size": 4} | arguments)


def test_residual_heads_with_own_projections():
    spec = HeadsSpec(
        num_heads=1, hidden_size=4, num_layers=2, vocab_size=9, projection="own"
    )
    assert spec.tensor_shapes() == {
        "blocks.0.layers.0.weight": (4, 4),
        "blocks.0.layers.0.bias": (4,),
        "blocks.0.layers.1.weight": (4, 4),
        "blocks.0.layers.1.bias": (4,),
        "lm_heads.0.weight": (9, 4),
    }
    assert spec.num_parameters == 2 * (16 + 4) + 36


def test_mlp_heads_with_low_rank_projections_over_a_draft_vocabulary():
    spec = HeadsSpec(
        num_heads=1,
        hidden_size=4,
        vocab_size=9,
        block="mlp",
        intermediate_size=6,
        projection="low_rank",
        rank=2,
        draft_vocab_size=5,
    )
    assert spec.tensor_shapes() == {
        "blocks.0.layers.0.up.weight": (6, 4),
        "blocks.0.layers.0.up.bias": (6,),
        "blocks.0.layers.0.down.weight": (4, 6),
        "blocks.0.layers.0.down.bias": (4,),
        "lm_heads.0.down.weight": (2, 4),
        "lm_heads.0.up.weight": (5, 2),
        "token_map": (5,),
    }


def test_layernorm_heads_without_bias_and_one_projection():
    spec = HeadsSpec(
        num_heads=1,
        hidden_size=4,
        vocab_size=9,
        block="layernorm",
        block_bias=False,
        projection="single",
    )
    assert spec.tensor_shapes() == {
        "blocks.0.layers.0.weight": (4, 4),
        "blocks.0.norms.0.weight": (4,),
        "blocks.0.norms.0.bias": (4,),
        "lm_head.weight": (9, 4),
    }


def test_a_stored_projection_needs_a_vocabulary():
    spec = HeadsSpec(num_heads=1, hidden_size=4, projection="own")
    with pytest.raises(CheckpointError, match="vocabulary"):
        spec.tensor_shapes()


def test_reduced_keeps_the_first_heads_and_tokens():
    spec = HeadsSpec(num_heads=3, hidden_size=4, vocab_size=9, draft_vocab_size=5)
    reduced = spec.reduced(num_heads=2, draft_vocab=4)
    assert (reduced.num_heads, reduced.draft_vocab_size) == (2, 4)
    assert spec.reduced() == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 4}, "choose 1 to 3"),
        ({"num_heads": 0}, "choose 1 to 3"),
        ({"draft_vocab": 6}, "choose 1 to 5"),
        ({"draft_vocab": 0}, "choose 1 to 5"),
    ],
)
def test_reduced_refuses_more_than_there_is(arguments, message):
    spec = HeadsSpec(num_heads=3, hidden_size=4, vocab_size=9, draft_vocab_size=5)
    with pytest.raises(ConfigError, match=message):
        spec.reduced(**arguments)


def test_reduced_needs_a_token_map():
    with pytest.raises(ConfigError, match="no token_map"):
        HeadsSpec(num_heads=3, hidden_size=4).reduced(draft_vocab=2)
