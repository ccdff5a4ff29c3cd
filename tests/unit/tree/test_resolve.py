# SPDX-License-Identifier: Apache-2.0
"""The tree and the batch table that a configuration means for given heads."""

from __future__ import annotations

import json

import pytest

from vllm_medusa import MedusaConfig
from vllm_medusa.errors import ConfigError, MedusaError, TreeError
from vllm_medusa.tree import chain, node_gains, optimal
from vllm_medusa.tree.builders import cartesian
from vllm_medusa.tree.resolve import MIN_GAIN, resolve_batch_table, resolve_tree

TABLE = [[0.4, 0.2, 0.1], [0.3, 0.1, 0.05], [0.2, 0.1, 0.05]]
PATHS = [[0], [1], [0, 0], [0, 0, 0], [2]]


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def with_accuracies(tmp_path):
    write(tmp_path, "accuracies.json", {"accuracy": TABLE})
    return tmp_path


@pytest.fixture
def with_tree(with_accuracies):
    write(with_accuracies, "tree.json", {"paths": PATHS})
    return with_accuracies


def config(**fields):
    return MedusaConfig(heads="heads", **fields)


def paths_of(tree):
    return [list(path) for path in tree.paths]


def test_without_files_a_chain_over_all_heads(tmp_path):
    assert resolve_tree(config(), tmp_path, 4) == chain(4)
    assert resolve_tree(config(num_heads=2), tmp_path, 4) == chain(2)


def test_tree_beside_the_heads_comes_first(with_tree):
    assert paths_of(resolve_tree(config(), with_tree, 3)) == PATHS


def test_shipped_tree_loses_the_nodes_of_heads_not_in_use(with_tree):
    tree = resolve_tree(config(num_heads=2), with_tree, 3)
    assert paths_of(tree) == [[0], [1], [0, 0], [2]]


def test_accuracies_give_the_best_tree_of_worthwhile_nodes(with_accuracies):
    tree = resolve_tree(config(), with_accuracies, 3)
    assert tree == optimal(TABLE, tree.num_nodes)
    assert min(node_gains(tree, TABLE)) >= MIN_GAIN
    larger = optimal(TABLE, tree.num_nodes + 1)
    assert node_gains(larger, TABLE)[-1] < MIN_GAIN


def test_accuracies_of_useless_heads_still_give_one_node(tmp_path):
    write(tmp_path, "accuracies.json", {"accuracy": [[0.01, 0.0]]})
    assert resolve_tree(config(), tmp_path, 1) == chain(1)


def test_accuracies_give_as_many_nodes_as_asked_for(with_accuracies):
    tree = resolve_tree(config(num_speculative_tokens=20), with_accuracies, 3)
    assert tree == optimal(TABLE, 20)


def test_accuracies_of_heads_not_in_use_are_left_out(with_accuracies):
    fields = {"num_heads": 2, "num_speculative_tokens": 12}
    tree = resolve_tree(config(**fields), with_accuracies, 3)
    assert tree == optimal(TABLE[:2], 12)


def test_chosen_tree_beats_the_files(with_tree):
    tree = resolve_tree(config(tree="optimal:7"), with_tree, 3)
    assert tree == optimal(TABLE, 7)
    assert resolve_tree(config(tree="chain"), with_tree, 3) == chain(3)


def test_num_speculative_tokens_cuts_the_tree(with_tree):
    tree = resolve_tree(config(num_speculative_tokens=3), with_tree, 3)
    assert paths_of(tree) == PATHS[:3]
    fields = {"tree": "chain", "num_speculative_tokens": 2}
    assert resolve_tree(config(**fields), with_tree, 3) == chain(2)


def test_refuses_to_cut_to_more_nodes_than_there_are(with_tree):
    with pytest.raises(ConfigError, match="is 6 but the tree has only 5 nodes"):
        resolve_tree(config(num_speculative_tokens=6), with_tree, 3)


def test_refuses_more_heads_than_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"num_heads is 5 but .* only 4 heads"):
        resolve_tree(config(num_heads=5), tmp_path, 4)


def test_refuses_a_chosen_tree_deeper_than_the_heads(with_tree):
    with pytest.raises(TreeError, match="only 3 heads"):
        resolve_tree(config(tree="zephyr_stage2"), with_tree, 3)
    with pytest.raises(TreeError, match="only 2 heads"):
        write(with_tree, "mine.json", PATHS)
        path = str(with_tree / "mine.json")
        resolve_tree(config(tree=path, num_heads=2), with_tree, 3)


@pytest.mark.parametrize("name", ["tree.json", "accuracies.json"])
def test_damaged_file_beside_the_heads_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("{")
    with pytest.raises(TreeError, match=f"{name} is not valid JSON"):
        resolve_tree(config(), tmp_path, 3)


@pytest.mark.parametrize("name", ["accuracies.json", "calibration.json"])
def test_damaged_accuracies_only_matter_to_a_tree_made_of_them(tmp_path, name):
    (tmp_path / name).write_text("{")
    for tree in ("chain:2", "beam:2x2", [[0], [0, 0]]):
        assert resolve_tree(config(tree=tree), tmp_path, 3).max_depth == 2
    for tree in ("optimal:4", "1x2x2"):
        with pytest.raises(MedusaError, match=f"{name} is not valid JSON"):
            resolve_tree(config(tree=tree), tmp_path, 3)


def test_widths_are_ordered_by_the_accuracies(with_accuracies):
    tree = resolve_tree(config(tree="1x2x2"), with_accuracies, 3)
    assert tree == cartesian([2, 2], TABLE) != cartesian([2, 2])


KEY = "num_speculative_tokens_per_batch_size"
ROWS = [[1, 1, 16], [2, 4, 3], [5, 64, 0]]


def test_batch_table_beside_the_heads_is_lowered_to_the_tree(tmp_path):
    write(tmp_path, "calibration.json", {KEY: ROWS, "machine": "x"})
    table = resolve_batch_table(config(), tmp_path, chain(5))
    assert table == [(1, 1, 5), (2, 4, 3), (5, 64, 0)]


def test_no_batch_table(tmp_path):
    assert resolve_batch_table(config(), tmp_path, chain(5)) is None
    write(tmp_path, "calibration.json", {KEY: ROWS})
    fixed = config(num_speculative_tokens_per_batch_size=None)
    assert resolve_batch_table(fixed, tmp_path, chain(5)) is None


def test_calibration_comes_before_what_training_knows(with_tree):
    """Its tree and its accuracies, each if it has them."""
    measured = [[0.2, 0.4], [0.1, 0.3]]
    calibration = {KEY: ROWS}
    write(with_tree, "calibration.json", calibration)
    assert paths_of(resolve_tree(config(), with_tree, 3)) == PATHS
    assert resolve_tree(config(tree="optimal:4"), with_tree, 3) == optimal(TABLE, 4)
    calibration |= {"accuracy": measured, "paths": [[1], [1, 1], [0], [1, 1, 0]]}
    write(with_tree, "calibration.json", calibration)
    tree = resolve_tree(config(), with_tree, 3)
    assert paths_of(tree) == calibration["paths"]
    assert resolve_tree(config(num_heads=2), with_tree, 3) == tree.truncate(3)
    chosen = resolve_tree(config(tree="optimal:4"), with_tree, 3)
    assert chosen == optimal(measured, 4) != optimal(TABLE, 4)


def test_chosen_batch_table_must_fit_the_tree(tmp_path):
    chosen = config(num_speculative_tokens_per_batch_size=ROWS)
    table = resolve_batch_table(chosen, tmp_path, chain(16))
    assert table == [(1, 1, 16), (2, 4, 3), (5, 64, 0)]
    with pytest.raises(ConfigError, match=r"16 nodes at 1 to 1 requests.* only 5"):
        resolve_batch_table(chosen, tmp_path, chain(5))


@pytest.mark.parametrize("resolve", [resolve_tree, resolve_batch_table])
def test_damaged_calibration_is_an_error(tmp_path, resolve):
    (tmp_path / "calibration.json").write_text("{")
    last = 3 if resolve is resolve_tree else chain(5)
    with pytest.raises(ConfigError, match=r"calibration.* not valid JSON"):
        resolve(config(), tmp_path, last)
