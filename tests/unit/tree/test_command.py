# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa tree show` and `tree build`, through the command's own entry."""

from __future__ import annotations

import json

import pytest
import torch

from vllm_medusa.checkpoint import save_heads
from vllm_medusa.cli.main import main
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.tree import expected_tokens, from_file, optimal

TABLE = [[0.5, 0.2, 0.1], [0.4, 0.1, 0.05], [0.3, 0.1, 0.05]]


@pytest.fixture
def accuracies(tmp_path):
    path = tmp_path / "accuracies.json"
    path.write_text(json.dumps({"accuracy": TABLE}))
    return path


@pytest.fixture
def heads(tmp_path):
    spec = HeadsSpec(num_heads=3, hidden_size=4, vocab_size=8)
    tensors = {name: torch.zeros(s) for name, s in spec.tensor_shapes().items()}
    folder = tmp_path / "heads"
    save_heads(folder, spec, tensors)
    (folder / "accuracies.json").write_text(json.dumps({"accuracy": TABLE}))
    (folder / "tree.json").write_text('{"paths": [[0], [1], [0, 0]]}')
    return folder


def shown(capsys, *arguments):
    assert main(["tree", "show", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["tree", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_show_draws_every_node_and_the_totals(capsys, accuracies):
    spec = "[[0], [1], [0, 2]]"
    assert main(["tree", "show", spec, "--accuracies", str(accuracies)]) == 0
    assert capsys.readouterr().out == (
        "root (last sampled token) · row 0\n"
        "├── rank 0 · row 1 · depth 1 · gain 0.500\n"
        "│   └── rank 2 · row 3 · depth 2 · gain 0.025\n"
        "└── rank 1 · row 2 · depth 1 · gain 0.200\n"
        "nodes            3\n"
        "depth            2\n"
        "leaves           2\n"
        "nodes per depth  2, 1\n"
        "expected tokens per step  1.725\n"
    )


def test_show_without_accuracies_leaves_the_gains_out(capsys):
    assert main(["tree", "show", "2", "--nodes", "1"]) == 0
    out = capsys.readouterr().out
    assert "rank 0 · row 1 · depth 1\n" in out
    assert "expected" not in out
    assert "rank 1" not in out


def test_show_keeps_each_node_of_a_deep_tree_on_one_line(capsys):
    assert main(["tree", "show", "chain:40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[40].endswith("└── rank 0 · row 40 · depth 40")


def test_show_says_when_the_accuracies_lack_a_node(capsys, accuracies):
    assert main(["tree", "show", "[[7]]", "--accuracies", str(accuracies)]) == 0
    assert "unknown: no accuracies of some nodes" in capsys.readouterr().out


def test_show_as_json(capsys, accuracies):
    out = shown(capsys, "optimal:9", "--accuracies", accuracies, "--nodes", "5")
    tree = optimal(TABLE, 5)
    assert out["parents"] == list(tree.parents)
    assert out["ranks"] == list(tree.ranks)
    assert out["depths"] == list(tree.depths)
    assert out["paths"] == [list(path) for path in tree.paths]
    assert (out["nodes"], out["depth"]) == (5, tree.max_depth)
    assert out["leaves"] == len(tree.leaves)
    assert out["nodes_per_depth"] == list(tree.nodes_per_depth)
    expected = expected_tokens(tree, TABLE)
    assert out["expected_tokens_per_step"] == pytest.approx(expected)
    assert sum(out["gains"]) == pytest.approx(expected)


def test_show_the_tree_of_heads(capsys, heads):
    assert shown(capsys, "--heads", heads)["paths"] == [[0], [1], [0, 0]]
    text = f"medusa:{heads}?num_heads=1"
    assert shown(capsys, "--heads", text)["paths"] == [[0], [1]]
    out = shown(capsys, "chain", "--heads", heads)
    assert out["nodes"] == 3
    assert out["expected_tokens_per_step"] == pytest.approx(1 + 0.5 + 0.2 + 0.06)


def test_build_writes_the_optimal_tree(capsys, accuracies, tmp_path):
    output = tmp_path / "new" / "tree.json"
    arguments = ["--accuracies", accuracies, "--nodes", 5, "--output", output]
    assert main(["tree", "build", *map(str, arguments)]) == 0
    assert from_file(output) == optimal(TABLE, 5)
    written = json.loads(output.read_text())
    expected = expected_tokens(optimal(TABLE, 5), TABLE)
    assert written["expected_tokens_per_step"] == pytest.approx(expected, abs=1e-4)
    lines = capsys.readouterr().out.splitlines()
    sizes = [int(line.split()[0]) for line in lines[1:-1]]
    # Three heads with three ranks give 3 + 9 + 27 nodes: no line for 64.
    assert sizes == [1, 2, 4, 5, 8, 16, 32]
    assert "  1.500" in lines[1]
    assert lines[4].endswith(f"{expected:.3f}  <- written")


def test_build_keeps_its_limits(accuracies, tmp_path):
    output = tmp_path / "tree.json"
    arguments = ["--accuracies", accuracies, "--nodes", 6, "--output", output]
    limits = ["--max-depth", 2, "--max-rank", 1]
    assert main(["tree", "build", *map(str, [*arguments, *limits])]) == 0
    tree = from_file(output)
    assert (tree.num_nodes, tree.max_depth, tree.max_rank) == (6, 2, 1)


def test_refusals(capsys, accuracies, heads, tmp_path):
    assert "needs a tree, or --heads" in refused(capsys, "show")
    assert "unknown tree 'chian'" in refused(capsys, "show", "chian")
    assert "give 0 to 3" in refused(capsys, "show", "chain:3", "--nodes", 4)
    assert "only 3 heads" in refused(capsys, "show", "chain:4", "--heads", heads)
    build = ["build", "--accuracies", accuracies, "--output"]
    assert "only 39 nodes" in refused(capsys, *build, tmp_path / "t", "--nodes", 40)
    assert not (tmp_path / "t").exists()
    assert "cannot write" in refused(capsys, *build, tmp_path, "--nodes", 4)
