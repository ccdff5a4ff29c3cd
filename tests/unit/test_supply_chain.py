# SPDX-License-Identifier: Apache-2.0
"""No connection but to the hub for ids that the user names, and no foreign code."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.checkpoint.support import REFERENCE_CONFIG, canonical_tensors, write
from vllm_medusa.checkpoint import hub, resolve_heads
from vllm_medusa.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]

# Hears every name that is looked up and every connection, before anything is imported.
_LISTENER = """
import ipaddress, json, os, sys
heard = []
def hear(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "localhost"
    elif event in ("urllib.Request", "webbrowser.open"):
        host = str(arguments[0])
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        heard.append((event, str(host)))
sys.addaudithook(hear)
"""


def connections(tmp_path: Path, code: str, *arguments: str, **environment: str) -> list:
    """What `code` looks up or connects to, in a process of its own that may do so."""
    report = tmp_path / "heard.json"
    script = f"{_LISTENER}\n{code}\njson.dump(heard, open({str(report)!r}, 'w'))\n"
    variables = {**os.environ, **environment, "HF_HOME": str(tmp_path / "hub")}
    # Nothing holds back what would report or fetch by default.
    for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        if name not in environment:
            variables.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(report.read_text())


def test_the_listener_hears(tmp_path):
    code = """
import socket
try:
    socket.create_connection(("stats.invalid", 443), timeout=1)
except OSError:
    pass
"""
    assert connections(tmp_path, code)[0] == ["socket.getaddrinfo", "stats.invalid"]


def test_the_plugin_the_options_and_the_commands_connect_nowhere(tmp_path):
    """Registering, parsing, local heads and every command that needs no model."""
    heads = write(
        tmp_path / "heads", "model.safetensors", canonical_tensors(), REFERENCE_CONFIG
    )
    (heads / "accuracies.json").write_text('{"accuracy": [[0.4, 0.2], [0.3, 0.1]]}')
    code = """
from vllm_medusa import MedusaConfig, plugin
from vllm_medusa.checkpoint import load_heads
from vllm_medusa.cli.main import main
plugin.register()
folder = sys.argv[1]
MedusaConfig.parse("medusa:" + folder + "?tree=chain:3")
MedusaConfig.parse("medusa:some/heads")  # an id is only looked up when it is loaded
load_heads(folder)
accuracies, tree = folder + "/accuracies.json", folder + "-tree"
for words in (
    ["inspect", folder],
    ["convert", folder, folder + "-converted"],
    ["tree", "show", "chain:3"],
    ["tree", "show", "--heads", folder],
    ["tree", "build", "--accuracies", accuracies, "--nodes", "3", "--output", tree],
    ["plan", "vicuna-7b", folder],
    ["inspect", folder + "/none"],
    ["inspect", "./none"],
    ["calibrate", folder, "./none"],
    ["evaluate", "--model", folder, "--heads", "./none", "--suite", "heads"],
    ["train", "./none", "--output", folder + "-trained", "--tokens", "0"],
    ["doctor"],
):
    print(words, main(words))
"""
    assert connections(tmp_path, code, str(heads)) == []


@pytest.mark.parametrize(
    "name",
    [
        "./heads",
        "../heads",
        "../../x",
        "/no/such/heads",
        "~/no-such-heads",
        "~nobody-of-that-name/heads",
        "heads/",
        "a/b/c",
        "folder/heads.pt",
        "https://example.com/a/b",
        "file:///etc/passwd",
        "hf://a/b",
        "a\\b",
        "a/b\n",
        " a/b",
        "-a/b",
        ".a/b",
        "ａ/ｂ",
    ],
)
def test_what_is_no_id_is_never_looked_up(name, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", _never)
    monkeypatch.setattr(hub, "hf_hub_download", _never)
    monkeypatch.setattr(hub, "snapshot_download", _never)
    with pytest.raises(CheckpointError, match="do not exist"):
        resolve_heads(name)


@pytest.mark.parametrize(
    "revision", ["../../x", "a b", "-x", "", "a\n", "a\0", "x" * 300]
)
def test_what_is_no_revision_is_never_looked_up(revision, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", _never)
    with pytest.raises(CheckpointError, match="is no revision"):
        resolve_heads("a/b", revision)


def test_a_link_that_leads_nowhere_is_never_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", _never)
    monkeypatch.chdir(tmp_path)
    Path("heads").symlink_to("gone")
    assert resolve_heads("heads") == Path("heads")


def _never(*arguments: object, **named: object) -> None:
    raise AssertionError(f"the hub was asked for {arguments}")


def _calls() -> list[tuple[str, str, ast.Call]]:
    """(file, dotted name of the function, call) of all of our code."""
    found = []
    for folder in ("vllm_medusa", "benchmarks", "scripts", "patches"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    place = f"{file.relative_to(ROOT)}:{node.lineno}"
                    found.append((place, ast.unparse(node.func), node))
    return found


def test_no_call_runs_or_trusts_foreign_code():
    """What ruff's rules S102, S301, S307, S506 and S602 to S605 have no word for."""
    calls = _calls()
    assert len(calls) > 3000
    for place, name, call in calls:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        trust = given.get("trust_remote_code", ast.Constant(False))
        assert isinstance(trust, ast.Constant), place
        assert trust.value is False, place
        assert "auto_map" not in given, place
        if name in ("torch.load", "load") and name.startswith("torch"):
            only = given.get("weights_only")
            assert isinstance(only, ast.Constant), place
            assert only.value is True, place
        assert name not in ("torch.hub.load", "numpy.load", "np.load", "joblib.load"), (
            place
        )
        # From the hub come the files that hub.py names, and a base model's own.
        if name.rpartition(".")[2] in ("snapshot_download", "hf_hub_download"):
            assert place.split(":")[0] in _FETCHING, place
    names = {name for _, name, _ in calls}
    assert {"torch.load", "hf_hub_download"} <= names  # else nothing was looked at


_FETCHING = {
    "vllm_medusa/checkpoint/hub.py",
    "vllm_medusa/planning/find_base.py",
    "vllm_medusa/train/lm_head.py",
}
