# SPDX-License-Identifier: Apache-2.0
"""Tables, plots and the result file."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.evaluation.runs import MACHINE, make_record, make_run, make_scores
from vllm_medusa.calibration.result_file import without_folders, write_result_file
from vllm_medusa.evaluation.plots import draw_plots
from vllm_medusa.evaluation.records import Summary, summarise
from vllm_medusa.evaluation.settings import Setting, plain
from vllm_medusa.evaluation.suites import SUITES, make_settings
from vllm_medusa.evaluation.tables import print_tables, warn_if_busy

PNG = b"\x89PNG\r\n"


def summaries_of(*suites: str, references: bool = False) -> list[Summary]:
    """Every setting of the suites, with plain vLLM at every temperature."""
    settings: list[Setting] = []
    for setting in make_settings(suites, "default", 2):
        base = plain(setting.suite, setting.temperature)
        settings += [s for s in (base, setting) if s not in settings]
    turns = {s: n for n, s in enumerate(settings) if s.config is None}
    records = [
        make_record(
            setting,
            turns[plain(setting.suite, setting.temperature)],
            make_run(
                [[1, 2, 3, 4]], tokens_per_step=1 if setting.config is None else 2
            ),
        )
        for setting in settings
    ]
    known = {"q-0": "1 2 3 4 5"} if references else {}
    return summarise(records, make_scores(records), known)


def printed(summaries: list[Summary]) -> str:
    console = Console(width=200, record=True, file=StringIO())
    print_tables(console, summaries)
    return console.export_text()


def test_a_table_for_every_suite() -> None:
    text = printed(summaries_of("heads", "acceptance"))
    assert "heads (median" in text and "acceptance (median" in text
    row = next(line for line in text.splitlines() if "chain of 1" in line)
    # Tokens per step, speed-up, perplexity with its error, share of greedy tokens.
    for cell in ("1.50 (1.50-1.50)", "2.72 ± 0.00", "100.0 %"):
        assert cell in row
    assert "BLEU" not in text
    assert "plain, T = 0.3" in text and "typical at 0.7" in text


def test_columns_of_references_where_there_are_some() -> None:
    text = printed(summaries_of("heads", references=True))
    assert "BLEU" in text and "ROUGE-1/2/L" in text
    # 4 of 5 words in order: F1 is 8/9, that of pairs 6/7.
    assert "0.889/0.857/0.889" in text


def test_a_busy_machine_is_named() -> None:
    console = Console(width=200, record=True, file=StringIO())
    warn_if_busy(console, [MACHINE])
    assert console.export_text() == ""
    warn_if_busy(console, [MACHINE, MACHINE | {"machine_cpu_seconds": 1.5}])
    assert "up to 0.50 cores" in console.export_text()


def test_a_plot_for_every_suite(tmp_path: Path) -> None:
    result = tmp_path / "deep" / "evaluation.json"
    paths = draw_plots(result, summaries_of("all"))
    assert [p.name for p in paths] == [f"evaluation-{name}.png" for name in SUITES]
    for path in paths:
        assert path.read_bytes().startswith(PNG)


def test_settings_of_one_s_own_have_no_plot(tmp_path: Path) -> None:
    records = [make_record(plain("custom", 0.0), 0, make_run([[1, 2]]))]
    summaries = summarise(records, make_scores(records), {})
    assert draw_plots(tmp_path / "x.json", summaries) == []
    assert list(tmp_path.iterdir()) == []


def test_a_result_file_names_what_it_is_and_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    command = without_folders(
        ["/venv/bin/vllm-medusa", "evaluate", "--output=/a/b.json"]
    )
    write_result_file(path, {"evaluation": "settings"}, command, {"summary": [1]})
    document = json.loads(path.read_text())
    assert document["schema"] == 1
    assert document["evaluation"] == "settings"
    assert document["command"] == "vllm-medusa evaluate --output=b.json"
    assert {"date", "cpu", "cores", "versions"} <= set(document["machine"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result_file(path, {}, "", {"summary": float("nan")})
    assert json.loads(path.read_text()) == document
