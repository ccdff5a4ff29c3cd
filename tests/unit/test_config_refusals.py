# SPDX-License-Identifier: Apache-2.0
"""Every mistake in a configuration is one clear ConfigError."""

from __future__ import annotations

import json

import pytest

from vllm_medusa import MedusaConfig
from vllm_medusa.errors import ConfigError

TABLE_KEY = "num_speculative_tokens_per_batch_size"


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
        ("medusa:x?acceptance=loose", "acceptance is 'loose': .*\"exact\""),
        ("medusa:x?epsilon=high", "epsilon must be a number, not 'high'"),
        ("medusa:x?epsilon=0", "epsilon is 0.0: .* between 0 and 1"),
        ("medusa:x?epsilon=nan", "epsilon is nan: .* between 0 and 1"),
        ("medusa:x?delta=-1", "delta is -1.0: .* above 0"),
        ("medusa:x?delta=inf", "delta is inf: .* above 0"),
        ("medusa:x?first_token=best", 'first_token is .best.: .*"drawn"'),
        ("medusa:x?tree=beam:0x3", "tree: beam:0x3 is not possible: .* from 1 to"),
        ("medusa:x?tree=beam:3x0", "tree: beam:3x0 is not possible: .* at least 1"),
        ("medusa:x?tree=beam:64x64", "tree: beam:64x64 is not possible: .* 1024"),
        (
            "medusa:x?tree=beam:3",
            r"tree: unknown tree 'beam:3' \(did you mean 'beam'\?",
        ),
        ("medusa:x?tree=beam:3x2&num_heads=1", "2 deep but there are only 1 heads"),
        (
            "medusa:x?tree=beam:3x2&num_speculative_tokens=4",
            "beam:3x2 always has 6 nodes: choose another",
        ),
        (
            "medusa:x?tree=beam:3x2&acceptance=rejection",
            "'rejection', which draws .* beam:3x2 takes .* choose another tree",
        ),
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
        ({"method": "medusa", "model": "x", 5: "y"}, "key 5:"),
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
