# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_medusa.calibration.report import speedup_rows, write_batch_table
from vllm_medusa.calibration.tokens import scale_expected, usable_node_counts
from vllm_medusa.config import MedusaConfig
from vllm_medusa.errors import ConfigError
from vllm_medusa.tree import chain
from vllm_medusa.tree.resolve import resolve_batch_table

COSTS = {1: {0: 0.04, 4: 0.05}, 8: {0: 0.06, 4: 0.12}}
TOKENS = {0: 1.0, 4: 1.5}


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


def test_the_engine_reads_the_written_table(tmp_path: Path) -> None:
    table = [(1, 3, 4), (4, 8, 0)]
    write_batch_table(
        tmp_path / "batch_table.json", table, COSTS, TOKENS, {"dtype": "float32"}
    )
    config = MedusaConfig(heads="somewhere")
    assert resolve_batch_table(config, tmp_path, chain(4)) == table
    document = json.loads((tmp_path / "batch_table.json").read_text())
    assert document["step_seconds"]["8"] == {"0": 0.06, "4": 0.12}
    assert document["machine"]["cpu"]
    assert document["machine"]["date"].startswith("20")


def test_rows_of_the_printed_table() -> None:
    columns, rows = speedup_rows(COSTS, TOKENS)
    assert columns == ["requests", "plain ms", "4 nodes"]
    assert rows == [["1", "40.0", "1.20"], ["8", "60.0", "0.75"]]
