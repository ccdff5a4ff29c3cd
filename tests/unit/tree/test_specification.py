# SPDX-License-Identifier: Apache-2.0
"""What a user may write for a tree."""

from __future__ import annotations

import pytest

from vllm_medusa.errors import TreeError
from vllm_medusa.tree import (
    cartesian,
    chain,
    optimal,
    parse_tree,
    published,
    published_names,
)
from vllm_medusa.tree.specification import check_tree_text

TABLE = [[0.5, 0.2], [0.4, 0.1], [0.3, 0.1]]


@pytest.mark.parametrize(
    ("value", "tree"),
    [
        ("chain", chain(3)),
        ("chain:2", chain(2)),
        ("4", cartesian((4,))),
        ("4x2", cartesian((4, 2))),
        ("1x7x6", cartesian((7, 6))),
        ("optimal:5", optimal(TABLE, 5)),
        ("vicuna_33b_stage1", published("vicuna_33b_stage1")),
        ("[[0], [0, 0]]", chain(2)),
        ([[0], [0, 0]], chain(2)),
        (((0,), (0, 0)), chain(2)),
    ],
)
def test_forms(value, tree):
    parsed = parse_tree(value, num_heads=3, accuracies=TABLE)
    assert parsed.paths[0] == tree.paths[0]
    assert set(parsed.paths) == set(tree.paths)
    if isinstance(value, str):
        check_tree_text(value)


def test_file(tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text("[[0], [0, 0]]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("mine.json", "./mine.json", "~/mine.json", f"{tmp_path}/mine.json"):
        check_tree_text(name)
        assert parse_tree(name, num_heads=2) == chain(2)


def test_widths_are_ordered_by_the_accuracies():
    table = [[0.1, 0.7], [0.3, 0.2]]
    assert parse_tree("2x2", num_heads=2, accuracies=table).paths[0] == (1,)


def test_optimal_uses_only_the_heads_there_are():
    tree = parse_tree("optimal:6", num_heads=2, accuracies=[[0.5, 0.4]] * 4)
    assert tree.max_depth == 2


@pytest.mark.parametrize("name", ["mc_sim_7b_63", "chain:5", "1x1x1x1x1x1"])
def test_refuses_more_depth_than_heads(name):
    with pytest.raises(TreeError, match="there are only 3 heads"):
        parse_tree(name, num_heads=3)
    assert parse_tree(name, num_heads=None).max_depth > 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("chian", r"'chian' \(did you mean 'chain'\?\).*optimal:N.*zephyr_stage2"),
        ("vicuna_7b", r"did you mean 'vicuna_7b_stage[12]'"),
        ("", "unknown tree ''"),
        ("chain:", "unknown tree"),
        ("chain:-1", "unknown tree"),
        ("chain:0", "1 to 1024 nodes"),
        ("chain:9999", "1 to 1024 nodes"),
        ("chain:99999999999999999999", "unknown tree"),
        ("optimal:0", "1 to 1024 nodes"),
        ("4x", "unknown tree"),
        ("1", "at least one width"),
        ("x", "unknown tree"),
        ("4x0", "width 0"),
        ("64x64", "more than 1024 nodes"),
        ("[[0]", "not valid JSON"),
        ("[]", "at least one node"),
        ("[[0], [0]]", "stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ("x" * 10_000, "unknown tree 'x"),
    ],
)
def test_refuses_texts_before_and_when_building(value, message):
    with pytest.raises(TreeError, match=message) as caught:
        parse_tree(value, num_heads=4, accuracies=TABLE)
    assert len(str(caught.value)) < 600
    with pytest.raises(TreeError, match=message):
        check_tree_text(value)


@pytest.mark.parametrize("value", [None, 5, {"paths": [[0]]}, b"chain"])
def test_refuses_other_types(value):
    with pytest.raises(TreeError, match="a tree is a list of paths"):
        parse_tree(value, num_heads=4)


def test_optimal_needs_accuracies():
    with pytest.raises(TreeError, match=r"optimal:4 needs measured accuracies"):
        parse_tree("optimal:4", num_heads=4)


def test_chain_needs_a_length_where_there_are_no_heads():
    with pytest.raises(TreeError, match="chain:4"):
        parse_tree("chain", num_heads=None)


def test_message_lists_every_published_name():
    with pytest.raises(TreeError) as caught:
        parse_tree("nothing", num_heads=4)
    assert all(name in str(caught.value) for name in published_names())
