# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa plan` from options to tables, JSON and exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_medusa.cli import main as cli
from vllm_medusa.planning.find_base import BUILT_IN

GIB = 1 << 30


def plan(tmp_path: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    output = tmp_path / "plan.json"
    code = cli.main(["plan", *argv, "--json", str(output)])
    return code, json.loads(output.read_text(encoding="utf-8"))


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["plan", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As the publishers count them, in billions.
    [
        ("vicuna-7b", 6.738),
        ("vicuna-13b", 13.016),
        ("vicuna-33b", 32.529),
        ("llama-2-70b", 68.977),
        ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554),
        ("mistral-7b", 7.242),
    ],
)
def test_built_in_shapes(tmp_path: Path, name: str, parameters: float) -> None:
    assert name in BUILT_IN
    _, result = plan(tmp_path, name, "shared:1", "--gpu", "cpu")
    assert round(result["base"]["num_parameters"] / 1e9, 3) == parameters


def test_seven_billion_on_one_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = plan(
        tmp_path,
        *("vicuna-7b", "medusa:own:5?tree=mc_sim_7b_63", "--tokens-per-step", "2.57"),
    )
    assert code == 0
    plain, medusa = (result["memory"][side] for side in ("plain", "medusa"))
    assert sum(plain["exact"].values()) == 2 * result["base"]["num_parameters"]
    # 32 layers of keys and values of 4096 numbers in 2 bytes.
    assert medusa["kv_cache"]["bytes_per_token"] == 2 * 32 * 4096 * 2
    blocks = 5 * (4096 * 4096 + 4096) * 2
    assert medusa["exact"]["heads_blocks"] == blocks
    assert medusa["exact"]["heads_projections"] == 5 * 32000 * 4096 * 2
    for side in (plain, medusa):
        taken = sum(side["exact"].values()) + sum(side["estimated"].values())
        assert side["kv_cache"]["num_bytes"] == side["budget"] - taken
    rows = result["steps"]["rows"]
    assert [row["requests"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    first = rows[0]
    # One request reads all weights but the embedding, at 80 % of 3.35 TB/s.
    read = 2 * (result["base"]["num_parameters"] - 32000 * 4096) + 1025 * 524288
    assert first["plain_ms"] == pytest.approx(1e3 * read / (0.8 * 3.35e12), rel=1e-2)
    assert first["speedup"] == pytest.approx(2.57 / first["overhead"])
    assert rows[0]["best_nodes"] == 63 and rows[-1]["best_nodes"] == 0
    out = capsys.readouterr().out
    assert "Fits. Medusa takes" in out and "estimate" in out


def test_ranks_share_all_but_norms(tmp_path: Path) -> None:
    """70B with 8 KV heads: sharded on 8 ranks, replicated on 16."""
    memory = {}
    for ranks in (1, 8, 16):
        _, result = plan(tmp_path, "llama-2-70b", "own:4", "--tp", str(ranks))
        memory[ranks] = result["memory"]["medusa"]
    one, eight = memory[1]["exact"], memory[8]["exact"]
    for kind in ("mlp", "embedding", "lm_head", "attention"):
        assert 8 * eight[kind] == one[kind]
    assert eight["replicated"] == one["replicated"]
    assert 8 * eight["heads_projections"] == one["heads_projections"]
    per_token = {n: side["kv_cache"]["bytes_per_token"] for n, side in memory.items()}
    assert per_token[8] == per_token[1] // 8
    assert per_token[16] == per_token[8]
    # Queries and outputs are halved, keys and values are not.
    keys = 2 * 80 * 8192 * 128 * 2
    assert memory[16]["exact"]["attention"] == (eight["attention"] - keys) // 2 + keys


def test_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = plan(tmp_path, "llama-2-70b", "own:5")
    assert code == 1
    assert not result["fits"]
    assert result["advice"] == ["--tp 2", "--quantization fp8"]
    assert "--tp 2" in capsys.readouterr().out
    for change in (("--tp", "2"), ("--quantization", "fp8")):
        assert plan(tmp_path, "llama-2-70b", "own:5", *change)[0] == 0


def test_heads_alone_do_not_fit(tmp_path: Path) -> None:
    """Advice is what makes it fit: fewer heads, a smaller draft vocabulary."""
    options = ("vicuna-7b", "--gpu", "RTX-4090", "--max-model-len", "2048")
    options += ("--max-num-seqs", "32")
    heads = "own:28"
    code, result = plan(tmp_path, *options, heads)
    assert code == 1
    fewer = next(a for a in result["advice"] if a.startswith("num_heads="))
    number = int(fewer.removeprefix("num_heads=").split()[0])
    assert 1 <= number < 28
    assert plan(tmp_path, *options, f"medusa:{heads}?num_heads={number}")[0] == 0
    assert plan(tmp_path, *options, f"medusa:{heads}?num_heads={number + 1}")[0] == 1
    assert "draft_vocab=8192 (heads with a token_map)" in result["advice"]
    assert plan(tmp_path, *options, f"medusa:{heads}?draft_vocab=8192")[0] == 0
    assert "without Medusa it fits" in result["advice"]


def test_quantisation_and_kv_cache_dtype(tmp_path: Path) -> None:
    sizes = {}
    for method in ("none", "fp8", "awq"):
        _, result = plan(tmp_path, "vicuna-7b", "own:1", "--quantization", method)
        exact = result["memory"]["medusa"]["exact"]
        sizes[method] = exact["attention"] + exact["mlp"]
        assert exact["embedding"] == 2 * 32000 * 4096
    assert sizes["fp8"] * 2 == sizes["none"]
    # Half a byte, and 2.5 bytes for 128 weights.
    assert sizes["awq"] / sizes["none"] == pytest.approx((0.5 + 2.5 / 128) / 2)
    _, result = plan(tmp_path, "vicuna-7b", "own:1", "--kv-cache-dtype", "fp8")
    assert result["memory"]["plain"]["kv_cache"]["bytes_per_token"] == 2 * 32 * 4096


def test_accuracies_choose_the_nodes(tmp_path: Path) -> None:
    """The default heads have accuracies: fewer nodes pay with more requests."""
    code, result = plan(tmp_path, "default", "default", "--gpu", "L4")
    assert code == 0
    best = [row["best_nodes"] for row in result["steps"]["rows"]]
    assert best == sorted(best, reverse=True)
    assert best[0] > best[-1]
    table = result["steps"]["table"]
    assert table[0][0] == 1 and table[-1][1] == result["steps"]["rows"][-1]["requests"]


def test_only_heads_that_the_tree_reaches_cost_time(tmp_path: Path) -> None:
    def first(heads: str) -> dict[str, Any]:
        return plan(tmp_path, "vicuna-7b", heads)[1]["steps"]["rows"][0]

    deep, flat = first("medusa:own:5?tree=chain:5"), first("medusa:own:5?tree=5")
    assert deep["heads_ms"] == pytest.approx(5 * flat["heads_ms"], rel=1e-6)
    assert deep["plain_ms"] == flat["plain_ms"]


def test_cpu_invents_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = plan(tmp_path, "vicuna-7b", "own:5", "--gpu", "cpu")
    assert code == 0
    assert result["memory"]["medusa"]["kv_cache"]["num_bytes"] is None
    assert "missing" in result["steps"]
    assert "No step cost" in capsys.readouterr().out


def test_machine_file(tmp_path: Path) -> None:
    machine = tmp_path / "machine.json"
    figures: dict[str, Any] = {"name": "mine", "memory_gib": 80}
    machine.write_text(json.dumps(figures))
    options = ("vicuna-7b", "own:5", "--machine", str(machine))
    _, result = plan(tmp_path, *options)
    assert result["memory"]["plain"]["budget"] == -(-80 * GIB * 92 // 100)
    assert result["steps"] == {"missing": "memory bandwidth is not known of mine"}
    figures |= {"bandwidth_gb_per_second": 1000, "tflops": {"bfloat16": 100}}
    machine.write_text(json.dumps(figures))
    _, result = plan(tmp_path, *options)
    assert result["steps"]["rows"]
    _, result = plan(tmp_path, *options, "--tp", "2")
    assert "bandwidth to other ranks" in result["steps"]["missing"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("vicuna-7b", "own:5", "--gpu", "h1000"), "did you mean 'h100'"),
        (("vicuna-7b", "own:0"), "num_heads must be at least 1"),
        (("vicuna-7b", "own:99"), "at most 64"),
        (("vicuna-7b", "medusa:own:5?tre=1"), "did you mean 'tree'"),
        (("vicuna-7b", "medusa:own:2?tree=chain:3"), "heads"),
        (("vicuna-7b", "medusa:own:5?tree=chain:3", "--nodes", "9"), "3 nodes"),
        (("vicuna-7b", "default"), "hidden_size"),
        (("vicuna-7b", "own:5", "--tp", "3"), "use one of 1, 2, 4, 8, 16"),
        (("vicuna-33b", "own:5", "--tp", "8"), "attention heads (52)"),
        (("vicuna-7b", "own:5", "--tp", "0"), "--tp is 0"),
        (("vicuna-7b", "own:5", "--gpu-memory-utilization", "1.1"), "at most 1"),
        (("vicuna-7b", "own:5", "--tokens-per-step", "0.5"), "at least 1"),
        (("vicuna-7b", "own:5", "--machine", "/none.json"), "does not exist"),
        (("vicuna-7b", "/none"), "do not exist"),
        (("no model", "own:5"), "built-in"),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert said.lower() in error(capsys, *argv).lower()
