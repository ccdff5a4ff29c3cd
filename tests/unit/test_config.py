# SPDX-License-Identifier: Apache-2.0
"""MedusaConfig: three ways in, one configuration, one clear error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vllm_medusa import MedusaConfig
from vllm_medusa.config import parse_speculative_model
from vllm_medusa.errors import ConfigError

TABLE_KEY = "num_speculative_tokens_per_batch_size"
CHAR = st.characters(exclude_categories=("Cs",))
TREES = st.sampled_from(
    [
        "chain",
        "chain:5",
        "4x2",
        "optimal:9",
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
        "acceptance": st.just("exact"),
        "draft_vocab": st.none() | st.integers(1, 10**6),
        TABLE_KEY: st.sampled_from([None, "auto"]) | batch_tables(),
    },
)


@given(FIELDS)
def test_every_form_gives_the_configuration_back(fields):
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
    config = parse_speculative_model(
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eagle:x", "does not start with 'medusa:': give medusa:HEADS"),
        ("", "does not start with 'medusa:'"),
        ("medusa:", "names no heads"),
        ("medusa:?tree=chain", "names no heads"),
        ("medusa:@main", "names no heads"),
        ("medusa:x@", "no revision after '@'"),
        ("medusa:x?", "ends in '\\?'"),
        ("medusa:x?tree", "'tree' in .* must be key=value"),
        ("medusa:x?tree=", "must be key=value"),
        ("medusa:x?=chain", "must be key=value"),
        ("medusa:x?tree=chain&", "'' in .* must be key=value"),
        ("medusa:x?tree=chain&tree=4x2", "'tree' is given twice"),
        ("medusa:x?heads=y", "'heads' is given twice"),
        ("medusa:x@a?revision=b", "'revision' is given twice"),
        ("medusa:x?tre=chain", r"unknown key 'tre' \(did you mean 'tree'\?\).*heads"),
        ("medusa:x?tree=%4", "'%4' has a '%'"),
        ("medusa:%zz", "'%zz' has a '%'"),
        ("medusa:x?tree=%FF", "does not encode UTF-8"),
        ("medusa:x?num_heads=two", "num_heads must be a whole number, not 'two'"),
        ("medusa:x?num_heads=2.0", "num_heads must be a whole number"),
        ("medusa:x?num_heads=-1", "num_heads must be a whole number"),
        ("medusa:x?num_heads=٣", "num_heads must be a whole number"),
        ("medusa:x?num_heads=0", "num_heads is 0: it must be a whole number of at"),
        (f"medusa:x?{TABLE_KEY}=often", f'{TABLE_KEY} must be "auto", null or JSON'),
        (f"medusa:x?{TABLE_KEY}={'[' * 9999}", "must be"),
        ("medusa:x?acceptance=typical", "acceptance is 'typical': .*\"exact\""),
        ("medusa:x?tree=chian", r"tree: unknown tree 'chian' .*zephyr_stage2"),
        ("medusa:default@main", "revision 'main' with the default heads"),
    ],
)
def test_refuses_texts(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MedusaConfig.parse(text)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "method None: Medusa needs"),
        ({"model": "x"}, "method None: Medusa needs"),
        ({"method": "eagle", "model": "x"}, "method 'eagle'"),
        ({"method": "medusa"}, 'lacks "model"'),
        ({"method": "medusa", "model": None}, 'lacks "model"'),
        ({"method": "medusa", "model": 3}, "heads is 3"),
        ({"method": "medusa", "model": ""}, "heads is ''"),
        (
            {"method": "medusa", "model": "x", "draft_tensor_parallel_size": 1},
            "unknown .* key 'draft_tensor_parallel_size': Medusa knows method, model",
        ),
        (
            {"method": "medusa", "model": "x", "num_speculative_token": 1},
            r"did you mean 'num_speculative_tokens'\?",
        ),
        ({"method": "medusa", "model": "x", "heads": "y"}, "key 'heads'"),
        ({"method": "medusa", "model": "x", 5: "y"}, "key '5'"),
    ],
)
def test_refuses_dicts(options, message):
    with pytest.raises(ConfigError, match=message):
        MedusaConfig.from_speculative_config(options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": None}, "heads is None"),
        ({"revision": ""}, "revision is ''"),
        ({"num_heads": True}, "num_heads is True"),
        ({"num_heads": "3"}, "num_heads is '3'"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens is 0"),
        ({"draft_vocab": 1.5}, "draft_vocab is 1.5"),
        ({"tree": 5}, "tree: a tree is a list of paths"),
        ({"tree": []}, "tree: the list of paths is empty"),
        ({"tree": [[1, 0]]}, r"tree: path \[1, 0\] has a gap"),
        ({"tree": "[[0]"}, "tree: the tree is not valid JSON"),
        ({"acceptance": None}, 'acceptance is None: it must be "exact"'),
        ({"acceptance": "x" * 999}, "acceptance is 'xxx.*…: it must be"),
        ({TABLE_KEY: []}, "non-empty list"),
        ({TABLE_KEY: "always"}, "non-empty list .* not 'always'"),
        ({TABLE_KEY: [[1, 2]]}, r"\[1, 2\] must be three integers"),
        ({TABLE_KEY: [[1, 2, 3.0]]}, "must be three integers"),
        ({TABLE_KEY: [[1, 2, True]]}, "must be three integers"),
        ({TABLE_KEY: [4]}, "4 must be three integers"),
        ({TABLE_KEY: [[2, 3, 4]]}, "starts at 2 requests"),
        ({TABLE_KEY: [[0, 3, 4]]}, "range 0 to 3 must satisfy"),
        ({TABLE_KEY: [[1, 3, 4], [5, 4, 2]]}, "range 5 to 4 must satisfy"),
        ({TABLE_KEY: [[1, 3, 4], [3, 9, 2]]}, "ranges 1 to 3 and 3 to 9 overlap"),
        ({TABLE_KEY: [[1, 3, -1]]}, "-1 nodes must be 0 or more"),
        ({TABLE_KEY: [[1, 3, 4]], "num_speculative_tokens": 3}, "asks for 4 nodes but"),
        ({"tree": "chain:4", "num_heads": 3}, "4 deep but there are only 3 heads"),
        ({"tree": "4x2", "num_heads": 1}, "2 deep but there are only 1 heads"),
        ({"tree": [[0], [0, 0]], "num_heads": 1}, "2 deep"),
        ({"tree": "chain:4", "num_speculative_tokens": 5}, "has only 4 nodes"),
        ({"nodes": 3}, "unknown key 'nodes'.*heads, revision, num_heads, tree"),
    ],
)
def test_refuses_fields(fields, message):
    fields = {"heads": "x"} | fields
    with pytest.raises(ConfigError, match=message) as caught:
        MedusaConfig(**fields)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=message):
        MedusaConfig.model_validate(fields)
    with pytest.raises(ConfigError, match=message):
        MedusaConfig.model_validate_json(json.dumps(fields))


def test_refuses_what_is_no_mapping():
    with pytest.raises(ConfigError, match="heads is missing"):
        MedusaConfig()
    with pytest.raises(ConfigError, match="no mapping"):
        MedusaConfig.model_validate([1])
    with pytest.raises(ConfigError, match="Invalid JSON"):
        MedusaConfig.model_validate_json("{")
    with pytest.raises(ConfigError, match="does not start with"):
        MedusaConfig.parse(None)


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
