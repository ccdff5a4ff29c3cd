# SPDX-License-Identifier: Apache-2.0
"""The rules of the tree-by-batch table are those of vLLM, which reads it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_medusa.batch_table import check_batch_table
from vllm_medusa.errors import ConfigError

NUMBERS = st.integers(-1, 12)
ENTRIES = st.tuples(NUMBERS, NUMBERS, NUMBERS)


@st.composite
def likely_tables(draw: st.DrawFn):
    """Tables that are right but for a chance change of one entry."""
    table, first = [], 1
    for _ in range(draw(st.integers(1, 4))):
        last = first + draw(st.integers(0, 5))
        table.append((first, last, draw(st.integers(0, 9))))
        first = last + 1 + draw(st.integers(0, 2))
    if draw(st.booleans()):
        table[draw(st.integers(0, len(table) - 1))] = draw(ENTRIES)
    return draw(st.permutations(table))


@pytest.fixture(scope="module")
def upstream():
    """vLLM's own check, read from its file: importing vllm takes seconds."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None:
        pytest.skip("vllm is not installed")
    path = Path(vllm.origin).parent / "v1/spec_decode/dynamic/utils.py"
    spec = importlib.util.spec_from_file_location("dynamic_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.validate_and_normalize_dynamic_sd_schedule


@settings(max_examples=300)
@given(table=likely_tables() | st.lists(ENTRIES, max_size=4))
def test_same_verdict_and_same_table_as_vllm(upstream, table):
    try:
        expected = upstream(table)
    except ValueError:
        with pytest.raises(ConfigError, match="num_speculative_tokens_per_batch_size"):
            check_batch_table(table)
    else:
        assert list(check_batch_table(table)) == expected


def test_error_quotes_only_the_start_of_a_long_value():
    with pytest.raises(ConfigError) as caught:
        check_batch_table([[1] * 100_000])
    assert len(str(caught.value)) < 200
