# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmarks' grid, figures and files, with engines that only pretend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import bench, gpu, measure, projection, report, timings
from benchmarks.gpu.engines import Setup, engine_arguments, kv_bytes
from benchmarks.gpu.grid import Cell, Grid, split
from benchmarks.gpu.models import SMOLLM, Model, find_model
from benchmarks.gpu.plot import plot_overhead
from benchmarks.gpu.records import Records
from benchmarks.gpu.shapes import SHAPES, Shape
from vllm_medusa.checkpoint import load_heads
from vllm_medusa.config import MedusaConfig
from vllm_medusa.engines.process import EngineError
from vllm_medusa.tree.published import published

GRID = Grid(
    (256, 2048), (1, 32), (4, 64), steps=64, warm_up=16, repeats=2, tokens_per_step=2
)
PLAIN_MS, ROW_MS = 10.0, 0.05


class PretendEngine:
    """Answers jobs at once: a step takes 10 ms and 50 µs more for every row."""

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str]):
        config = options.get("speculative_config")
        self.rows = 1 if config is None else config["num_speculative_tokens"] + 1
        self.timed = environment.get("VLLM_MEDUSA_TIMING") == "1"
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, job: str, **arguments: Any) -> Any:
        self.calls.append((job, arguments))
        if job == "about":
            memory = {"allocated": 1 << 30, "reserved": 1 << 30}
            if self.rows > 1:
                memory |= {"heads": 100 << 20, "buffers": 80 << 20}
            # The smaller trees at batch 1 have no graph.
            captured = [[1, self.rows]] if self.rows != 4 else []
            graphs = {"mode": "FULL_DECODE_ONLY", "captured": captured}
            return {"graphs": graphs, "memory": memory}
        if job == "speed":
            tokens = [[1, 2], [3, 4 + self.rows]]
            speed = 100.0 * (1 + self.rows / 64)
            return {
                "tokens_per_second": speed,
                "tokens_per_step": 2.0,
                "token_ids": tokens,
            }
        assert job == "steps"
        seconds = (PLAIN_MS + ROW_MS * (self.rows - 1)) / 1e3
        parts = {
            name: {"seconds": 64 * ms / 1e3, "calls": 64}
            for name, ms in (
                ("draw", 0.2),
                ("propose", 0.5),
                ("verify", 0.1),
                ("move", 0.1),
            )
        }
        return {
            "seconds": seconds,
            "median": seconds,
            "tokens": 1.0,
            "parts": parts if arguments["timing"] else None,
        }


class Pretend:
    """Stands for `engines.start` and keeps every engine that was started."""

    def __init__(self, refused: Mapping[str, str] | None = None) -> None:
        self.refused = dict(refused or {})
        self.started: list[PretendEngine] = []

    def __call__(
        self,
        stack: ExitStack,
        arguments: Mapping[str, dict[str, Any]],
        environment: Mapping[str, str],
    ) -> tuple[dict[str, Any], dict[str, str]]:
        engines = {
            name: PretendEngine(options, environment)
            for name, options in arguments.items()
            if name not in self.refused
        }
        self.started += engines.values()
        return engines, {n: why for n, why in self.refused.items() if n in arguments}


def model(
    random_weights: bool = True,
    name: str = "vicuna-7b",
    shape: Shape = SHAPES["vicuna-7b"],
) -> Model:
    return Model(
        name=name,
        folder=Path("model"),
        heads=Path("heads"),
        tree="vicuna_7b_stage2",
        random_weights=random_weights,
        weight_bytes=2 * shape.num_weights(),
        head_bytes=2 * shape.heads_spec().num_parameters,
        kv_bytes=shape.kv_bytes_per_token(2),
    )


SETUP = Setup("bfloat16", True, 80 << 30)
SETTINGS = {
    "model": "vicuna-7b",
    "dtype": "bfloat16",
    "cuda_graphs": True,
    "gpu": {"name": "Pretend"},
}


def run(
    path: Path, grid: Grid, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[dict[str, Any], Pretend]:
    start = Pretend(options.pop("refused", None))
    monkeypatch.setattr(measure, "start", start)
    records = Records(path, SETTINGS)
    measured = options.pop("model", model())
    whole = measure.Bench(measured, grid, SETUP, options.pop("engines", 3), records)
    whole.measure(["auto"], [64])
    return json.loads(path.read_text()), start


def test_cells_are_ratios_to_plain_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, start = run(tmp_path / "a.json", GRID, monkeypatch)
    found = {(c["context"], c["batch"], c["rows"]): c for c in content["cells"]}
    # 32 requests of 2048 tokens are 32 GiB: they do not fit beside three engines.
    assert set(found) == {
        (context, batch, rows)
        for context, batch in ((256, 1), (2048, 1))
        for rows in (4, 64)
    }
    cell = found[256, 1, 64]
    assert cell["overhead"]["median"] == pytest.approx(1 + 63 * ROW_MS / PLAIN_MS)
    assert cell["plain_seconds"]["median"] == pytest.approx(PLAIN_MS / 1e3)
    part = content["parts"]
    assert [(p["context"], p["batch"]) for p in part] == [(256, 1)]
    assert part[0]["added_seconds"] == pytest.approx(0.7e-3)
    assert content["engines"]["auto, 64 rows"]["memory"]["buffers"] == 80 << 20
    assert content["engines"]["plain"]["graphs"]["mode"] == "FULL_DECODE_ONLY"
    # Every engine is visited once per repeat, in turn.
    visits = [c for c in start.started[0].calls if c[0] == "steps"]
    assert len(visits) == 2 * GRID.repeats


def test_a_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    small = Grid((256,), (1,), (4,), steps=64, warm_up=16, repeats=2, tokens_per_step=2)
    run(path, small, monkeypatch)
    content, _ = run(path, GRID, monkeypatch)
    places = [(c["context"], c["batch"], c["rows"]) for c in content["cells"]]
    assert len(places) == len(set(places)) == 4
    again, idle = run(path, GRID, monkeypatch)
    assert idle.started == [] and again["cells"] == content["cells"]
    with pytest.raises(ValueError, match="other settings"):
        Records(path, {**SETTINGS, "dtype": "float16"})


def test_what_does_not_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"64 rows": "xformers is not installed"}
    content, _ = run(tmp_path / "a.json", GRID, monkeypatch, refused=refused)
    assert content["refused"] == {"auto, 64 rows": "xformers is not installed"}
    assert {c["rows"] for c in content["cells"]} == {4}
    with pytest.raises(EngineError, match="plain vLLM does not run"):
        run(tmp_path / "b.json", GRID, monkeypatch, refused={"plain": "no memory"})


def test_an_engine_that_dies_costs_only_its_own_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = PretendEngine.call

    def die(engine: PretendEngine, job: str, **arguments: Any) -> Any:
        if job == "steps" and engine.rows == 64 and arguments["context"] == 2048:
            raise EngineError("out of memory")
        return call(engine, job, **arguments)

    monkeypatch.setattr(PretendEngine, "call", die)
    content, _ = run(tmp_path / "a.json", GRID, monkeypatch)
    places = {(c["context"], c["rows"]) for c in content["cells"]}
    assert places == {(256, 4), (256, 64), (2048, 4)}
    assert content["refused"] == {
        "auto, 64 rows, context 2048, batch 1": "out of memory"
    }


def test_real_heads_answer_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model(random_weights=False, name=SMOLLM, shape=SHAPES["tiny"])
    content, _ = run(tmp_path / "a.json", GRID, monkeypatch, model=real, engines=6)
    speed = {(s["concurrency"], s["rows"]): s for s in content["speed"]}
    assert set(speed) == {(c, r) for c in (1, 8) for r in (4, 64)}
    assert speed[1, 64]["speedup"]["median"] == pytest.approx(2 / (1 + 1 / 64))
    assert speed[1, 64]["other_texts"] == 1


def test_the_report_names_goals_and_projections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    content, _ = run(tmp_path / "a.json", GRID, monkeypatch)
    content["projected"] = report.projections(content)
    capsys.readouterr()
    report.print_report(content)
    text = capsys.readouterr().out
    assert "MISSED  auto, 64 rows: heads 100 MiB, buffers 80.0 MiB" in text
    assert "MISSED  auto, context 256: 64 rows cost 1.315 plain steps" in text
    assert "reached  auto, context 256: 64 rows: heads, verify and move" in text
    missing = "MISSED  auto, 4 rows, context 2048, batch 1: no CUDA graph"
    assert missing in text and "64 rows, context 2048, batch 1: no CUDA" not in text
    assert "speed-up projected from published tokens per step" in text
    assert "arXiv 2401.10774" in text
    rows = {(p["training"], p["context"]): p for p in content["projected"]}
    assert rows["Medusa-2", 256]["speedup"] == pytest.approx(3.47 / 1.315)
    plot = tmp_path / "a.png"
    plot_overhead(plot, content)
    assert plot.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_overhead(plot, {"cells": []})


def test_only_published_trees_are_projected() -> None:
    assert projection.project("vicuna-7b", 32, 1.1) == []
    assert projection.project("tiny", 64, 1.1) == []
    with pytest.raises(ValueError, match="positive"):
        projection.project("vicuna-7b", 64, 0.0)


def test_memory_goal() -> None:
    assert timings.check_memory({"heads": 1 << 31, "buffers": 64 << 20}) is None
    problem = timings.check_memory({"heads": 0, "buffers": (64 << 20) + 1})
    assert problem is not None and "64 MiB" in problem
    with pytest.raises(ValueError, match="VLLM_MEDUSA_TIMING"):
        timings.shares({"seconds": 1.0, "parts": None})


def test_what_fits() -> None:
    """Weights of all engines, and then equal shares for keys and values."""
    left = kv_bytes(model(), 80 << 30, 3)
    assert 3 * (left + model().weight_bytes + model().head_bytes) < 80 << 30
    assert left > 5 << 30
    with pytest.raises(ValueError, match="fewer --engines"):
        kv_bytes(model(), 80 << 30, 6)
    assert Cell(2048, 1) in list(GRID.cells(left // model().kv_bytes))
    assert Cell(2048, 32) not in list(GRID.cells(left // model().kv_bytes))
    assert split([4, 8, 16, 32, 64], 3) == [[4, 8], [16, 32], [64]]
    with pytest.raises(ValueError, match="1 engine"):
        split([4], 1)


def test_engines_get_exact_trees_and_graphs() -> None:
    options = engine_arguments(model(), GRID, 16, "cascade", SETUP, 1 << 30)
    config = MedusaConfig.from_speculative_config(options["speculative_config"] | {})
    assert config.num_speculative_tokens == 15
    graphs = options["compilation_config"]
    assert graphs["cudagraph_capture_sizes"] == [16, 512]
    assert options["max_model_len"] >= 2048 + GRID.growth + 64
    plain = engine_arguments(model(), GRID, 1, "cascade", SETUP, 1 << 30)
    assert "speculative_config" not in plain
    assert plain["compilation_config"]["cudagraph_capture_sizes"] == [1, 32]
    eager = engine_arguments(
        model(), GRID, 64, "auto", Setup("float32", False, None), 1 << 30
    )
    assert eager["enforce_eager"] and "compilation_config" not in eager
    assert eager["max_num_batched_tokens"] >= 32 * 64
    for size in ("7b", "13b"):
        assert published(f"vicuna_{size}_stage2").num_nodes == 63


def test_shapes_are_written_once(tmp_path: Path) -> None:
    found = find_model("tiny", tmp_path)
    heads = load_heads(found.heads)
    assert heads.spec.num_heads == 5 and heads.spec.projection == "own"
    assert found.head_bytes == 2 * heads.spec.num_parameters
    weights = found.heads / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert find_model("tiny", tmp_path) == found
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="no model 'vicuna-70b'"):
        find_model("vicuna-70b", tmp_path)


def test_a_dry_run_is_no_result(capsys: pytest.CaptureFixture) -> None:
    arguments = bench.parse_arguments(["--dry-run"])
    results = Path(bench.__file__).parents[1] / "results"
    assert results not in arguments.output.parents
    assert arguments.model == "tiny" and arguments.parts == [8]
    with pytest.raises(SystemExit):
        bench.parse_arguments(["--dry-run", "--output", str(results / "gpu/x.json")])
    assert "no results" in capsys.readouterr().err
    normal = bench.parse_arguments(["--model", "vicuna-13b"])
    assert normal.output == results / "gpu/bench-vicuna-13b.json"
    for words, message in (
        (["--rows", "1,4"], "at least 2 rows"),
        (["--attention", "magic"], "knows no magic"),
    ):
        with pytest.raises(SystemExit):
            bench.parse_arguments(words)
        assert message in capsys.readouterr().err


def test_without_a_gpu_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "find_gpu", lambda: None)
    with pytest.raises(SystemExit, match="nvidia-smi finds no GPU"):
        bench.make_setup(bench.parse_arguments([]))


def test_a_gpu_as_nvidia_smi_tells() -> None:
    found = gpu.parse_gpu("NVIDIA H100 80GB HBM3, 580.159.04, 81559, 1980, 700.00")
    assert found.name == "NVIDIA H100 80GB HBM3"
    assert found.memory_bytes == 81559 << 20
    assert found.as_dict()["driver"] == "580.159.04"
    with pytest.raises(ValueError, match="nvidia-smi said"):
        gpu.parse_gpu("No devices were found")
