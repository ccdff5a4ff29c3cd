# SPDX-License-Identifier: Apache-2.0
"""MedusaConfig: three ways in, one configuration, one clear error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vllm_medusa import MedusaConfig
from vllm_medusa.errors import ConfigError

TABLE_KEY = "num_speculative_tokens_per_batch_size"
CHAR = st.characters(exclude_categories=("Cs",))
TREES = st.sampled_from(
    [
        "chain",
        "chain:5",
        "4x2",
        "optimal:9",
        "beam:5x3",
        "zephyr_stage2",
        "my trees/a&b=c?%41@.json",
        [[0], [1], [0, 3]],
        "[[0], [1]]",
    ]
)


@st.composite
def batch_tables(draw: st.DrawFn):
    table, first = [], 1
    for _ in range(draw(st.integers(1, 4))):
        last = first + draw(st.integers(0, 50))
        table.append([first, last, draw(st.integers(0, 3))])
        first = last + 1 + draw(st.integers(0, 3))
    return table


FIELDS = st.fixed_dictionaries(
    {"heads": st.text(CHAR, min_size=1).filter(lambda heads: heads != "default")},
    optional={
        "revision": st.none() | st.text(CHAR, min_size=1),
        "num_heads": st.none() | st.integers(5, 99),
        "tree": st.none() | TREES,
        "num_speculative_tokens": st.none() | st.just(2),
        "acceptance": st.sampled_from(["exact", "rejection", "typical"]),
        "epsilon": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "delta": st.none() | st.floats(0, 1e9, exclude_min=True),
        "first_token": st.sampled_from(["drawn", "greedy"]),
        "draft_vocab": st.none() | st.integers(1, 10**6),
        TABLE_KEY: st.sampled_from([None, "auto"]) | batch_tables(),
    },
)


@given(FIELDS)
def test_every_form_gives_the_configuration_back(fields):
    if str(fields.get("tree")).startswith("beam"):  # what is refused with it
        fields |= {"num_speculative_tokens": None, "acceptance": "exact"}
    if fields.get("num_speculative_tokens") and isinstance(fields.get(TABLE_KEY), list):
        fields[TABLE_KEY] = [[a, b, min(n, 2)] for a, b, n in fields[TABLE_KEY]]
    config = MedusaConfig(**fields)
    for key, value in fields.items():
        if key not in ("tree", TABLE_KEY):
            assert getattr(config, key) == value
    assert MedusaConfig.parse(config.to_text()) == config
    assert MedusaConfig(**json.loads(json.dumps(config.as_dict()))) == config
    options = json.loads(json.dumps(config.to_speculative_config()))
    again = MedusaConfig.from_speculative_config(options)
    assert again == config
    assert hash(again) == hash(config)
    assert again.to_speculative_config() == options
    assert again.to_text() == config.to_text()


@given(st.text(CHAR))
def test_any_text_gives_a_configuration_or_a_clear_error(text):
    for value in (text, "medusa:" + text, "medusa:x?" + text, "medusa:x?tree=" + text):
        try:
            config = MedusaConfig.parse(value)
        except ConfigError as error:
            assert "\n  " not in str(error) or "\n  " in value
            assert "pydantic" not in str(error)
        else:
            assert MedusaConfig.parse(config.to_text()) == config


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from([*MedusaConfig.model_fields, "method", "other"]), JSON)
def test_any_json_value_gives_a_configuration_or_a_clear_error(key, value):
    options = {"method": "medusa", "model": "x", key: value}
    try:
        config = MedusaConfig.from_speculative_config(options)
    except ConfigError as error:
        assert len(str(error)) < 700
    else:
        assert MedusaConfig(**config.as_dict()) == config


def test_text_form():
    config = MedusaConfig.parse(
        "medusa:org/name@refs/pr/1?num_heads=3&tree=4x2&num_speculative_tokens=8"
        f"&acceptance=exact&draft_vocab=8192&{TABLE_KEY}=[[1,4,8],[5,64,0]]"
    )
    assert config == MedusaConfig(
        heads="org/name",
        revision="refs/pr/1",
        num_heads=3,
        tree="4x2",
        num_speculative_tokens=8,
        acceptance="exact",
        draft_vocab=8192,
        num_speculative_tokens_per_batch_size=[[1, 4, 8], [5, 64, 0]],
    )


def test_defaults():
    assert MedusaConfig.parse("medusa:default").as_dict() == {
        "heads": "default",
        "revision": None,
        "num_heads": None,
        "tree": None,
        "num_speculative_tokens": None,
        "acceptance": "exact",
        "epsilon": 0.09,
        "delta": 0.3,
        "first_token": "drawn",
        "attention": "auto",
        "draft_vocab": None,
        TABLE_KEY: "auto",
    }
    assert MedusaConfig(heads="default").to_text() == "medusa:default"


@pytest.mark.parametrize(
    ("text", "heads", "revision"),
    [
        ("medusa:a%40b", "a@b", None),
        ("medusa:a%40b@v%401", "a@b", "v@1"),
        ("medusa:a@b@c", "a@b", "c"),
        ("medusa:a?revision=main", "a", "main"),
        ("medusa:with space/ä", "with space/ä", None),
    ],
)
def test_heads_and_revision(text, heads, revision):
    config = MedusaConfig.parse(text)
    assert (config.heads, config.revision) == (heads, revision)


def test_an_existing_path_is_taken_as_it_stands(tmp_path):
    folder = tmp_path / "heads@50%41"
    folder.mkdir()
    for text in (f"medusa:{folder}", f"medusa:{folder}?num_heads=2"):
        config = MedusaConfig.parse(text)
        assert (config.heads, config.revision) == (str(folder), None)
    config = MedusaConfig.parse(f"medusa:{folder}@main")
    assert (config.heads, config.revision) == (str(folder), "main")
    assert MedusaConfig.parse(config.to_text()) == config
    folder.rmdir()
    assert MedusaConfig.parse(f"medusa:{folder}").revision == "50A"


def test_batch_table_is_sorted():
    config = MedusaConfig(
        heads="x", num_speculative_tokens_per_batch_size=[(5, 9, 0), (1, 2, 4)]
    )
    assert config.num_speculative_tokens_per_batch_size == ((1, 2, 4), (5, 9, 0))


@pytest.mark.parametrize("tree", ["chain", "optimal:64", "a/b.json"])
def test_trees_that_need_the_heads_are_checked_with_them(tree):
    config = MedusaConfig(heads="x", tree=tree, num_heads=1, num_speculative_tokens=9)
    assert config.tree == tree


def test_is_immutable():
    config = MedusaConfig(heads="x")
    with pytest.raises(ValidationError, match="frozen"):
        config.heads = "y"
