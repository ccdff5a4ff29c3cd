# SPDX-License-Identifier: Apache-2.0
"""The core of an engine ends with the process that started it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SECONDS = 60.0
_CHILD = """
import multiprocessing, os, sys, time
from vllm_medusa.orphans import end_with_parent

def live():
    end_with_parent()
    os.write(1, b"alive\\n")
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    child = context.Process(target=live, name=sys.argv[2])
    child.start()
    os.write(1, f"{child.pid}\\n".encode())
    time.sleep(600)
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize(
    ("name", "ends"), [("EngineCore", True), ("EngineCore_DP1", True), ("Other", False)]
)
def test_a_core_ends_with_its_parent(
    tmp_path: Path, method: str, name: str, ends: bool
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_CHILD)
    with subprocess.Popen(
        [sys.executable, str(script), method, name], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            # Both write: the parent the child's id, the child that it lives.
            lines = {parent.stdout.readline().strip() for _ in range(2)}
        finally:
            parent.kill()
    assert "alive" in lines
    child = psutil.Process(int((lines - {"alive"}).pop()))
    try:
        if ends:
            child.wait(SECONDS)
        else:
            time.sleep(1.0)
            assert child.is_running()
    finally:
        if child.is_running():
            child.kill()
