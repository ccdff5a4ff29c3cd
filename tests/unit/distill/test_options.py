# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.distill.toy import options
from vllm_medusa.distill.options import EngineOptions
from vllm_medusa.distill.source_option import SourceOption
from vllm_medusa.errors import ConfigError

FILE = SourceOption("prompts", "a.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": 0}, "turns must be at least 1: 0"),
        ({"num_tokens": 0}, "num_tokens must be at least 1: 0"),
        ({"temperatures": ()}, "temperatures must be numbers from 0 to 100"),
        ({"temperatures": (-1.0,)}, "temperatures must be numbers from 0 to 100"),
        ({"top_p": 0.0}, "top_p is above 0 and at most 1, not 0.0"),
        ({"top_k": -1}, "top_k is 0"),
        ({"max_answer_tokens": 1000}, "leaves no room for a prompt"),
        ({"max_user_tokens": 1000}, "max_user_tokens 1000 leaves no room"),
        ({"num_prompts": None}, "the source 'self' has no end"),
        ({"samples": 2, "temperatures": (0.0,)}, "2 samples .* greedily more than"),
        ({"samples": 3, "temperatures": (0.0, 0.7)}, "3 samples .* greedily more"),
        ({"samples": 2, "temperatures": (0.0, 0.0, 0.7)}, "at most one sample per"),
        ({"samples": 2, "temperatures": (0.7,), "top_k": 1}, "and top_k 1"),
    ],
)
def test_bad_values(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(tmp_path, **({"num_prompts": 5} | changes))


def test_weights_need_a_budget(tmp_path: Path) -> None:
    heavy = SourceOption("prompts", "b.txt", weight=3)
    with pytest.raises(ConfigError, match="weights are shares of num_tokens"):
        options(tmp_path, sources=(FILE, heavy))
    options(tmp_path, sources=(FILE, heavy), num_tokens=10)
    options(tmp_path, sources=(FILE, FILE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1: 0"),
        ({"kv_cache_gib": float("nan")}, "kv_cache_gib must be above 0: nan"),
        ({"ray_engines": 2}, "ray_engines is for --ray"),
        ({"speculative_model": "heads"}, "does not start with 'medusa:'"),
        (
            {"speculative_model": "medusa:heads?acceptance=typical"},
            "acceptance=typical would give other answers",
        ),
    ],
)
def test_bad_engine_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineOptions(**changes)


def test_each_prompt_gets_each_temperature_once_where_there_are_as_many_samples(
    tmp_path: Path,
) -> None:
    found = options(tmp_path, num_prompts=5, samples=3, temperatures=(0.0, 0.5, 1.0))
    for position in range(4):
        dealt = {found.temperature(position, sample) for sample in range(3)}
        assert dealt == {0.0, 0.5, 1.0}


def test_temperatures_get_equal_parts(tmp_path: Path) -> None:
    found = options(tmp_path, num_prompts=5, samples=2, temperatures=(0.2, 0.5, 1.0))
    dealt = Counter(found.temperature(p, s) for p in range(30) for s in range(2))
    assert set(dealt.values()) == {20}


def test_the_engine_decides_nothing(tmp_path: Path) -> None:
    fast = EngineOptions(max_num_seqs=7, ray="local", speculative_model="medusa:x")
    plain = options(tmp_path / "a", num_prompts=5)
    other = options(tmp_path / "b", num_prompts=5, engine=fast)
    assert plain.deciding() == other.deciding()
    assert plain.deciding() != options(tmp_path, num_prompts=5, seed=1).deciding()


def test_sources_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    twice = SourceOption("prompts", "elsewhere/a.txt")
    found = options(tmp_path, sources=(FILE, twice, SourceOption("sharegpt", "c")))
    assert found.labels == ("prompts:a.txt", "prompts:a.txt#2", "sharegpt:c")
