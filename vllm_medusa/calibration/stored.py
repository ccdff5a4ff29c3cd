# SPDX-License-Identifier: Apache-2.0
"""calibration.json: what `vllm-medusa calibrate` found out about heads and a machine.

One JSON object. The engine reads three of its keys, each in the form that files of its
own have too, so that a calibration can stand wherever one of those can:

- `num_speculative_tokens_per_batch_size`: `[[first, last, nodes], …]`, see
  `vllm_medusa.batch_table`; the one that must be there;
- `paths`: the nodes of the tree in the order of their worth, as in tree.json. With
  n nodes a request gets the first n, which are the best tree of that size;
- `accuracy`: probability mass by head and rank, as in accuracies.json.

The rest is for the reader: temperature, accuracies by task, expected tokens per step,
step seconds by requests and nodes, the machine and the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vllm_medusa.batch_table import TABLE_KEY, BatchTable, check_batch_table
from vllm_medusa.errors import ConfigError, MedusaError
from vllm_medusa.json_file import read_json
from vllm_medusa.tree.accuracies import ACCURACY_KEY, Accuracies, check_accuracies
from vllm_medusa.tree.builders import PATHS_KEY, from_list
from vllm_medusa.tree.token_tree import TokenTree

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """What an engine takes from calibration.json.

    Attributes:
        table: nodes by number of running requests.
        tree: its nodes in the order of their worth; None if the file has no tree.
        accuracies: by head and rank; None if the file has none.
    """

    table: BatchTable
    tree: TokenTree | None
    accuracies: Accuracies | None


def load_calibration(path: Path) -> Calibration:
    """Read calibration.json.

    Raises:
        ConfigError: the file is missing, is no JSON object, or its table is missing or
            wrong.
        TreeError: its tree or its accuracies are wrong.
    """
    data = read_json(path, "calibration", ConfigError)
    if not isinstance(data, dict) or TABLE_KEY not in data:
        raise ConfigError(f'calibration file {path} lacks the key "{TABLE_KEY}"')

    def read(key: str, check: Callable[[Any], T]) -> T | None:
        try:
            return check(data[key]) if key in data else None
        except MedusaError as error:
            raise type(error)(f"calibration file {path}: {error}") from None

    table = read(TABLE_KEY, check_batch_table)
    assert table is not None
    return Calibration(
        table, read(PATHS_KEY, from_list), read(ACCURACY_KEY, check_accuracies)
    )
