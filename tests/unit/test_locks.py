# SPDX-License-Identifier: Apache-2.0
"""A folder belongs to one process at a time."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vllm_medusa.errors import OutputError
from vllm_medusa.locks import exclusive

HOLD = """
import sys
from pathlib import Path
from vllm_medusa.locks import exclusive
with exclusive(Path(sys.argv[1]), wait=False):
    print("has it", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that has the folder until a line is written to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "has it\n"
    return process


def test_another_process_is_kept_out(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with (
        pytest.raises(OutputError, match=f"another process is at work in {tmp_path}"),
        exclusive(tmp_path, wait=False),
    ):
        pass
    holder.communicate("\n", timeout=60)
    with exclusive(tmp_path, wait=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_waits_says_so(
    tmp_path: Path,
    holder: subprocess.Popen[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class End(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            holder.communicate("\n", timeout=60)

    logger, handler = logging.getLogger("vllm_medusa.locks"), End()
    logger.addHandler(handler)
    try:
        with exclusive(tmp_path, wait=True):
            assert holder.returncode == 0
    finally:
        logger.removeHandler(handler)
    assert f"at work in {tmp_path}" in caplog.text


def test_threads_keep_each_other_out(tmp_path: Path) -> None:
    inside: list[int] = []

    def work() -> int:
        with exclusive(tmp_path, wait=True):
            inside.append(1)
            time.sleep(0.02)
            return len(inside) - inside.pop()

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(work) for _ in range(8)]
        assert [future.result() for future in others] == [0] * 8


def test_what_one_has_one_may_ask_for_again(tmp_path: Path) -> None:
    """Training locks its working folder, saving heads the folder that it writes to:
    they may be the same."""
    (tmp_path / "link").symlink_to(tmp_path)
    with exclusive(tmp_path, wait=False):
        for wait in (True, False):
            with exclusive(tmp_path / "link", wait=wait):
                pass
        # The inner blocks have not let go of it.
        code = HOLD.replace("sys.stdin.readline()", "pass")
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        )
        assert "OutputError" in other.stderr
