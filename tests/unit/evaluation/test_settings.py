# SPDX-License-Identifier: Apache-2.0
"""Settings, suites, and which engines they need."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from vllm_medusa.default_model import heads_path
from vllm_medusa.errors import ConfigError
from vllm_medusa.evaluation.engines import (
    Engine,
    group_engines,
    plan_engines,
    resolve,
)
from vllm_medusa.evaluation.settings import (
    PLAIN,
    Setting,
    make_config,
    parse_setting,
    plain,
)
from vllm_medusa.evaluation.suites import BEAM_WIDTHS, EPSILONS, make_settings

NUM_HEADS = 4


def suite(*names: str, num_heads: int = NUM_HEADS) -> list[Setting]:
    return make_settings(names, "default", num_heads)


def test_options_for_the_given_heads() -> None:
    text = "wide=tree=chain:3&temperature=0.7&acceptance=typical&delta=none"
    setting = parse_setting(text, "org/heads")
    assert (setting.name, setting.temperature) == ("wide", 0.7)
    assert setting.config is not None
    assert setting.config.heads == "org/heads"
    assert setting.config.tree == "chain:3"
    assert setting.config.num_speculative_tokens_per_batch_size is None
    assert setting.extra_args() == {
        "medusa_acceptance": "typical",
        "medusa_epsilon": 0.09,
        "medusa_delta": "none",
        "medusa_first_token": "drawn",
    }


def test_a_whole_configuration() -> None:
    table = "num_speculative_tokens_per_batch_size=auto"
    setting = parse_setting(f"own=medusa:org/x@v1?num_heads=2&{table}", "default")
    assert setting.config is not None
    assert setting.temperature == 0.0
    assert (setting.config.heads, setting.config.revision) == ("org/x", "v1")
    assert setting.config.num_speculative_tokens_per_batch_size == "auto"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wide", "must be NAME=OPTIONS"),
        ("=tree=chain", "must be NAME=OPTIONS"),
        ("wide=", "must be NAME=OPTIONS"),
        ("plain=tree=chain", "names vLLM without Medusa"),
        ("a=tree", "must be key=value"),
        ("a=tre=chain", "did you mean 'tree'"),
        ("a=tree=nonsense", "unknown tree"),
        ("a=temperature=-1", "temperature must be a number"),
        ("a=temperature=nan", "temperature must be a number"),
        ("a=temperature=hot", "temperature must be a number"),
        ("a=acceptance=perhaps", "acceptance is 'perhaps'"),
    ],
)
def test_refused_settings(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_setting(text, "default")


def test_a_setting_as_json_names_no_folder(tmp_path: Path) -> None:
    config = make_config(str(tmp_path / "heads"), tree="chain:2")
    fields = Setting("custom", "a", config, 0.5).as_dict()
    assert fields["options"].startswith("medusa:heads?")
    assert "tree=chain:2" in fields["options"]
    assert fields["temperature"] == 0.5
    assert plain("heads", 0.0).as_dict()["options"] is None


def test_suites_answer_what_they_are_for() -> None:
    heads = suite("heads")
    lines = {(s.series, s.value) for s in heads}
    assert lines == {
        (series, count)
        for series in ("chain", "best tree of 5 nodes")
        for count in range(1, NUM_HEADS + 1)
    }
    for setting in heads:
        assert setting.config is not None
        assert setting.config.num_heads == setting.value
        assert resolve(setting.config).num_nodes == (
            setting.value if setting.series == "chain" else 5
        )

    beams = {s.config.tree for s in suite("beam") if s.config}
    assert beams == {
        f"beam:{width}x{depth}" for width in BEAM_WIDTHS for depth in range(1, 5)
    }

    for setting in suite("epsilon"):
        assert setting.temperature == 0.7
        assert setting.config is not None
        if setting.config.acceptance == "typical":
            assert setting.config.epsilon == setting.value
            assert setting.config.delta == pytest.approx(
                math.sqrt(setting.value or 0), abs=1e-4
            )
    assert {s.value for s in suite("epsilon")} == {None, *EPSILONS}
    assert (min(EPSILONS), max(EPSILONS)) == (0.01, 0.25)

    schemes = {(s.series, s.temperature) for s in suite("acceptance")}
    assert schemes == {
        (scheme, temperature)
        for scheme in ("exact", "typical", "rejection")
        for temperature in (0.3, 0.7, 1.0)
    }


def test_trees_are_compared_at_equal_numbers_of_nodes() -> None:
    nodes: dict[float, set[tuple[str, int]]] = {}
    for setting in suite("trees"):
        assert setting.config is not None and setting.value is not None
        tree = resolve(setting.config)
        nodes.setdefault(setting.value, set()).add((setting.series, tree.num_nodes))
    assert nodes == {
        count: {("cartesian", count), ("optimal", count)} for count in (4, 6, 14)
    }
    # No tree is deeper than there are heads.
    assert {s.value for s in suite("trees", num_heads=2)} == {4, 6}


def test_all_suites_and_unknown_ones() -> None:
    everything = suite("all")
    names = [(s.suite, s.name) for s in everything]
    assert len(set(names)) == len(names)
    assert len(suite("all", "heads")) == len(everything)
    assert len(suite("beam", "heads")) == len(suite("beam")) + len(suite("heads"))
    with pytest.raises(ConfigError, match="unknown suite 'head': there are heads"):
        suite("head")


def test_one_engine_changes_its_tree_and_one_rejects() -> None:
    settings = suite("all")
    planned = plan_engines(settings, changes_trees=True)
    assert set(planned) == set(settings)
    engines = set(planned.values())
    assert len(engines) == 2
    rejecting = {e for e in engines if e.config and e.config.acceptance == "rejection"}
    for setting, engine in planned.items():
        assert (engine in rejecting) == setting.needs_rejection
        assert engine.changes_trees
        # Started with the largest tree, so that every other one fits.
        assert engine.config is not None and setting.config is not None
        largest = resolve(engine.config).num_nodes
        assert resolve(setting.config).num_nodes <= largest
        value, num_heads, num_nodes = engine.tree_arguments(setting) or ()
        tree = resolve(setting.config)
        assert (value, num_heads, num_nodes) == (
            tree.value,
            setting.config.num_heads,
            tree.num_nodes,
        )


def test_separate_engines_differ_in_what_a_request_cannot_choose() -> None:
    planned = plan_engines(suite("all"), changes_trees=False)
    by_engine = Counter(planned.values())
    # Typical and exact acceptance of one tree share an engine.
    assert max(by_engine.values()) == 1 + len(EPSILONS) + 6
    for setting, engine in planned.items():
        assert engine.config == setting.engine_config()
        assert engine.tree_arguments(setting) is None


def test_a_batch_table_keeps_its_tree() -> None:
    tables = [
        parse_setting(
            f"t{n}=tree=chain:{n}&num_speculative_tokens_per_batch_size=auto", "default"
        )
        for n in (2, 3)
    ]
    planned = plan_engines([*suite("heads"), *tables], changes_trees=True)
    assert len(set(planned.values())) == 3
    assert not any(planned[setting].changes_trees for setting in tables)


def test_beams_travel_as_text_and_trees_as_paths() -> None:
    beam = resolve(make_config("default", tree="beam:5x2"))
    assert (beam.value, beam.num_nodes) == ("beam:5x2", 10)
    chain = resolve(make_config("default", tree="chain:2", num_heads=3))
    assert chain.value == ((0,), (0, 0))
    assert (chain.num_heads, chain.num_nodes) == (3, 2)
    cut = resolve(make_config("default", tree="chain:3", num_speculative_tokens=1))
    assert cut.num_nodes == 1


def test_groups_hold_plain_vllm_and_no_more_than_fits() -> None:
    engines = [Engine(f"e{n}", make_config("default")) for n in range(3)]
    groups = group_engines([*engines, engines[0]], 3)
    names = [[engine.name for engine in group] for group in groups]
    assert names == [[PLAIN, "e0", "e1"], [PLAIN, "e2"]]
    assert all(group[0].config is None for group in groups)
    with pytest.raises(ConfigError, match="--engines must be at least 2"):
        group_engines(engines, 1)


def test_default_heads_have_as_many_heads_as_the_suites_assume() -> None:
    from vllm_medusa.checkpoint import load_heads

    assert load_heads(str(heads_path())).spec.num_heads == NUM_HEADS
