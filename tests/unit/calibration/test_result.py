# SPDX-License-Identifier: Apache-2.0
"""calibration.json, as it is written and as the engine reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_medusa.calibration.options import CalibrationOptions
from vllm_medusa.calibration.plots import NAMES, draw_plots
from vllm_medusa.calibration.probability_mass import MassSums
from vllm_medusa.calibration.result import CalibrationResult
from vllm_medusa.calibration.stored import load_calibration
from vllm_medusa.default_model import heads_path
from vllm_medusa.errors import ConfigError, TreeError
from vllm_medusa.json_file import write_json
from vllm_medusa.tree import from_file, load_accuracies, optimal

TABLE = [[0.4, 0.2, 0.1], [0.3, 0.1, 0.05]]
SUMS = MassSums([[10 * value for value in row] for row in TABLE], [10, 10])
RESULT = CalibrationResult(
    table=[(1, 3, 4), (4, 8, 0)],
    tree=optimal(TABLE, 4),
    total=SUMS,
    by_task={"math": (SUMS, {0: 1.0, 4: 1.7})},
    tokens_per_step={0: 1.0, 4: 1.5},
    measured=(4, 1.5),
    costs={1: {0: 0.04, 4: 0.05}, 8: {0: 0.06, 4: 0.12}},
    options=CalibrationOptions(temperature=0.7),
    threads="0,1",
)
KEY = "num_speculative_tokens_per_batch_size"


def test_the_engine_and_the_readers_of_trees_and_accuracies_take_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "calibration.json"
    write_json(path, RESULT.as_dict())
    stored = load_calibration(path)
    assert list(stored.table) == RESULT.table
    assert stored.tree == from_file(path) == RESULT.tree
    assert stored.accuracies == load_accuracies(path)
    assert [list(row) for row in load_accuracies(path)] == TABLE


def test_it_says_where_the_figures_come_from(tmp_path: Path) -> None:
    document = json.loads(json.dumps(RESULT.as_dict()))
    assert document["step_seconds"]["8"] == {"0": 0.06, "4": 0.12}
    assert document["by_task"]["math"]["accuracy"] == TABLE
    assert (document["temperature"], document["num_positions"]) == (0.7, 10)
    assert document["measured"] == {"nodes": 4, "tokens_per_step": 1.5}
    assert document["settings"]["threads"] == "0,1"
    assert document["machine"]["cpu"]
    assert document["machine"]["date"].startswith("20")


def test_rows_of_the_printed_table() -> None:
    columns, rows = RESULT.speedup_rows()
    assert columns == ["requests", "plain ms", "4 nodes"]
    assert rows == [["1", "40.0", "1.20"], ["8", "60.0", "0.75"]]


def test_plots(tmp_path: Path) -> None:
    paths = draw_plots(tmp_path / "plots", RESULT)
    assert paths == [tmp_path / "plots" / name for name in NAMES]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("[[1, 1, 4]]", ConfigError, f'lacks the key "{KEY}"'),
        ("{}", ConfigError, f'lacks the key "{KEY}"'),
        ("{", ConfigError, "calibration file .* not valid JSON"),
        (f'{{"{KEY}": [[2, 3, 4]]}}', ConfigError, r"calibration\.json: .* start at 1"),
        (f'{{"{KEY}": [[1, 1, 1]], "paths": [[1], [0, 0]]}}', TreeError, "calibration"),
        (f'{{"{KEY}": [[1, 1, 1]], "accuracy": [[2]]}}', TreeError, "accuracy of head"),
    ],
)
def test_damaged(
    tmp_path: Path, content: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        load_calibration(path)


def test_the_default_heads_have_one() -> None:
    folder = Path(heads_path())
    stored = load_calibration(folder / "calibration.json")
    assert stored.tree == from_file(folder / "tree.json")
    assert stored.table[0] == (1, 1, 5)
