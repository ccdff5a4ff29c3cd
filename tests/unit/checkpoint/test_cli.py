# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa inspect` and `vllm-medusa convert`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.unit.checkpoint.support import (
    HIDDEN,
    REFERENCE_CONFIG,
    VOCAB,
    assert_same,
    canonical_tensors,
    reference_names,
    write,
)
from vllm_medusa.checkpoint import load_heads, save_heads
from vllm_medusa.cli.convert import convert
from vllm_medusa.cli.main import main
from vllm_medusa.errors import CheckpointError
from vllm_medusa.heads import HeadsSpec


@pytest.fixture
def source(tmp_path):
    named = reference_names(canonical_tensors())
    folder = write(tmp_path / "src", "medusa_lm_head.pt", named, REFERENCE_CONFIG)
    (folder / "accuracies.json").write_text('{"accuracy": [[0.5]]}')
    (folder / "tree.json").write_text('{"paths": [[0], [0, 0], [0, 0, 0]]}')
    return folder


def files(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_inspect_prints_json(source, capsys):
    assert main(["inspect", str(source), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    parameters = 3 * (2 * (HIDDEN * HIDDEN + HIDDEN) + VOCAB * HIDDEN)
    assert report["format"] == "A" and report["num_heads"] == 3
    assert report["projection"] == "own" and report["block"] == "residual"
    assert report["vocab_size"] == VOCAB and report["draft_vocab_size"] is None
    assert report["num_parameters"] == parameters
    assert report["memory_bytes"] == {
        "float32": 4 * parameters,
        "bfloat16": 2 * parameters,
    }
    assert report["dtypes"] == ["float32"]
    assert report["base_model"] == "lmsys/vicuna-7b-v1.3"
    assert report["side_files"] == ["accuracies.json", "tree.json"]
    assert len(report["notes"]) == 2


def test_inspect_prints_a_table(source, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", str(source)]) == 0
    text = capsys.readouterr().out
    assert "A (reference v0.1, torch file)" in text
    assert "residual, x + SiLU(Wx + b), with bias" in text
    assert "note: config says heads = 2" in text


def test_inspect_needs_no_vllm(source):
    program = (
        "import sys; from vllm_medusa.cli.main import main; "
        f"code = main(['inspect', {str(source)!r}]); "
        "assert not any(m.split('.')[0] == 'vllm' for m in sys.modules); "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_unsound_heads_are_one_line_on_stderr(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none" / "such" / "x")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: heads") and error.count("\n") == 1


def test_convert_writes_the_canonical_form(source, tmp_path, capsys):
    target = tmp_path / "new" / "dst"
    assert main(["convert", str(source), str(target)]) == 0
    assert capsys.readouterr().out == f"wrote {target}\n"
    checkpoint = load_heads(target)
    assert checkpoint.format == "canonical" and checkpoint.notes == ()
    assert checkpoint.base_model == "lmsys/vicuna-7b-v1.3"
    assert_same(checkpoint.tensors, canonical_tensors())
    assert files(target) == [
        "accuracies.json",
        "config.json",
        "model.safetensors",
        "tree.json",
    ]
    assert files(target.parent) == ["dst"]


def test_convert_keeps_fewer_heads_without_their_tree(source, tmp_path):
    target = tmp_path / "dst"
    arguments = ["--num-heads", "2", "--base-model", "a/b"]
    assert main(["convert", str(source), str(target), *arguments]) == 0
    checkpoint = load_heads(target)
    assert checkpoint.spec.num_heads == 2 and checkpoint.base_model == "a/b"
    assert "tree.json" not in files(target)


def test_convert_keeps_the_recipe_of_canonical_heads(tmp_path):
    spec = HeadsSpec(num_heads=1, hidden_size=2, vocab_size=9, draft_vocab_size=3)
    tensors = {
        "blocks.0.layers.0.weight": torch.ones(2, 2),
        "blocks.0.layers.0.bias": torch.ones(2),
        "token_map": torch.tensor([5, 1, 8]),
    }
    save_heads(tmp_path / "src", spec, tensors, extra_config={"steps": 7})
    convert(tmp_path / "src", tmp_path / "dst", draft_vocab=2)
    checkpoint = load_heads(tmp_path / "dst")
    assert checkpoint.config["steps"] == 7
    assert checkpoint.tensors["token_map"].tolist() == [5, 1]


def test_convert_overwrites_only_heads_and_only_when_told(source, tmp_path):
    target = tmp_path / "dst"
    convert(source, target)
    with pytest.raises(CheckpointError, match="--force"):
        convert(source, target)
    convert(source, target, num_heads=1, force=True)
    assert load_heads(target).spec.num_heads == 1
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"more than converted heads .*thesis"):
        convert(source, target, force=True)
    with pytest.raises(CheckpointError, match="is a file"):
        convert(source, target / "thesis.txt", force=True)


def test_convert_in_place(source, tmp_path):
    convert(source, tmp_path / "dst")
    convert(tmp_path / "dst", tmp_path / "dst", num_heads=2, force=True)
    assert load_heads(tmp_path / "dst").spec.num_heads == 2


def test_a_failed_convert_leaves_the_old_heads(source, tmp_path, monkeypatch):
    target = tmp_path / "dst"
    convert(source, target)
    replace = os.replace

    def fail_on_target(old, new):
        if os.fspath(new) == os.fspath(target) and not str(old).endswith("old"):
            raise OSError("disk full")
        replace(old, new)

    monkeypatch.setattr(os, "replace", fail_on_target)
    with pytest.raises(OSError, match="disk full"):
        convert(source, target, num_heads=1, force=True)
    monkeypatch.undo()
    assert load_heads(target).spec.num_heads == 3
    assert files(tmp_path) == ["dst", "src"]
