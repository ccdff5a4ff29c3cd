# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from vllm_medusa.calibration.tokens import (
    expected_by_nodes,
    scale_expected,
    usable_node_counts,
    worthy_tree,
)
from vllm_medusa.errors import ConfigError
from vllm_medusa.tree import expected_tokens, optimal

TABLE = [[0.4, 0.2, 0.0], [0.3, 0.0, 0.0]]


def test_scaling_keeps_the_plain_step_and_meets_the_measured_one() -> None:
    scaled = scale_expected({0: 1.0, 2: 1.4, 4: 1.8}, 4, 1.6)
    assert scaled == pytest.approx({0: 1.0, 2: 1.3, 4: 1.6})


def test_heads_that_win_nothing_scale_to_one() -> None:
    assert scale_expected({0: 1.0, 4: 1.8}, 4, 0.99) == {0: 1.0, 4: 1.0}


def test_no_expectation_is_refused() -> None:
    with pytest.raises(ConfigError, match="expect nothing of 4 node"):
        scale_expected({0: 1.0, 4: 1.0}, 4, 1.5)


def test_node_counts_fit_the_tree_and_include_all_of_it() -> None:
    assert usable_node_counts((1, 2, 4, 8, 16), 10) == [1, 2, 4, 8, 10]
    assert usable_node_counts((1, 2, 4), 2) == [1, 2]


def test_nodes_that_are_worth_nothing_are_left_out() -> None:
    tree = worthy_tree(TABLE, 63)
    assert tree == optimal(TABLE, 4)
    assert worthy_tree(TABLE, 3) == optimal(TABLE, 3)
    with pytest.raises(ConfigError, match="not one guess"):
        worthy_tree([[0.0, 0.0]], 8)


def test_expectation_of_each_cut() -> None:
    tree = optimal(TABLE, 4)
    expected = expected_by_nodes(tree, TABLE, [1, 2, 4])
    assert expected == pytest.approx(
        {0: 1.0} | {n: expected_tokens(tree.truncate(n), TABLE) for n in (1, 2, 4)}
    )
