# SPDX-License-Identifier: Apache-2.0
"""docs/grafana/medusa.json and docs/metrics.md: complete, and of metrics that exist.

That vLLM has the metrics named here is tested with an engine.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vllm_medusa.metrics import prometheus
from vllm_medusa.metrics.stats import REASONS
from vllm_medusa.timing import PARTS

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "metrics.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana/medusa.json").read_text())
NAME = re.compile(r"vllm:\w+")
OWN = set(re.findall(r'"(vllm:medusa_\w+)"', Path(prometheus.__file__).read_text()))


def panels(kind: str | None = None) -> list[dict[str, Any]]:
    found = DASHBOARD["panels"]
    assert all(panel["type"] == "row" or panel["targets"] for panel in found)
    return [p for p in found if (p["type"] == kind if kind else p["type"] != "row")]


def expressions() -> list[str]:
    return [t["expr"] for panel in panels() for t in panel["targets"]]


def base(name: str) -> str:
    """A metric's name without what its type appends."""
    return re.sub(r"_(total|sum|count|bucket)$", "", name)


@pytest.mark.parametrize("text", [PAGE, "\n".join(expressions())], ids=["page", "json"])
def test_every_metric_of_ours_is_shown_and_no_other(text: str) -> None:
    named = {base(name) for name in NAME.findall(text)}
    assert len(OWN) == 7
    assert {name for name in named if name.startswith("vllm:medusa_")} == OWN


def test_vllms_counters_of_speculation_are_shown() -> None:
    counters = {
        f"vllm:spec_decode_num_{name}_total"
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    } | {"vllm:spec_decode_num_accepted_tokens_per_pos_total"}
    for text in (PAGE, "\n".join(expressions())):
        assert counters <= set(NAME.findall(text))


def test_page_names_every_label_value() -> None:
    for value in (*REASONS, *PARTS):
        assert f"| `{value}` |" in PAGE


def test_dashboard_can_be_imported() -> None:
    """An import sets the id; the data source is chosen by a variable."""
    assert DASHBOARD["id"] is None and DASHBOARD["uid"]
    assert DASHBOARD["schemaVersion"] >= 36
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "model", "engine"]
    assert variables["datasource"]["query"] == "prometheus"
    for name, label in (("model", "model_name"), ("engine", "engine")):
        query = variables[name]["query"]["query"]
        assert query.startswith("label_values(vllm:medusa_tokens_per_step_count")
        assert query.endswith(f", {label})")
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["title"] and panel["description"]
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_queries_are_well_formed() -> None:
    for expression in expressions():
        assert expression.count("(") == expression.count(")")
        # Every selector keeps to the chosen model and engine.
        selectors = re.findall(r"vllm:\w+(\{[^}]*\})?", expression)
        assert selectors
        for selector in selectors:
            assert 'model_name=~"$model",engine=~"$engine"' in selector
        if "rate(" in expression:
            assert "[$__rate_interval]" in expression
        for label, values in (("reason", REASONS), ("part", PARTS)):
            for value in re.findall(rf'{label}!?="(\w+)"', expression):
                assert value in values


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not cells & taken
        taken |= cells
