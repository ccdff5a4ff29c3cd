# SPDX-License-Identifier: Apache-2.0
"""vLLM's commands as users run them: processes of their own, whole groups of them.

The settings of the tests' own process (an engine inside it, quiet logs, perhaps
Triton's interpreter) are taken back, so that a command starts its worker processes as
it does anywhere. One thread each stays: machines for tests are small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests import interpreter

VLLM = Path(sys.executable).with_name("vllm")
"""The command beside this Python; with PYTHONPATH it runs the vLLM found there."""
TAIL = 6000
"""Characters of a log that an error shows."""

_OF_THIS_PROCESS = (
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_LOGGING_LEVEL",
    "VLLM_CPU_KVCACHE_SPACE",
    *interpreter.ENVIRONMENT,
)
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The environment of a command; a change to None removes a variable."""
    values: dict[str, str | None] = {**os.environ, **_ENVIRONMENT}
    values |= dict.fromkeys(_OF_THIS_PROCESS) | dict(changes or {})
    return {name: value for name, value in values.items() if value is not None}


def start(
    command: list[str], log: Path, changes: Mapping[str, str | None] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, beside `log`, which gets its output."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment(changes),
            start_new_session=True,
        )


def members(session: int) -> list[psutil.Process]:
    """The living processes of a session that `start` made, the first one included."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if os.getsid(process.pid) == session and alive:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_for_end_of_all(session: int, seconds: float = 15.0) -> list[psutil.Process]:
    """Wait until no process of the session is left; return those that are."""
    end = time.monotonic() + seconds
    while (left := members(session)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def kill_all(session: int) -> None:
    """Kill every process of the session."""
    for process in members(session):
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    wait_for_end_of_all(session)


def tail(log: Path) -> str:
    """The end of a log, for an error."""
    return log.read_text(errors="replace")[-TAIL:]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, all it wrote, how long it took."""

    code: int
    output: str
    seconds: float


def run_vllm(
    *arguments: str | Path,
    log: Path,
    environment: Mapping[str, str | None] | None = None,
    seconds: float = 300.0,
) -> Ended:
    """Run `vllm ARGUMENTS` to its end.

    Raises:
        AssertionError: it ran longer than `seconds` (and was killed), or left
            processes behind (which were killed).
    """
    started = time.monotonic()
    process = start([str(VLLM), *map(str, arguments)], log, environment)
    try:
        code = process.wait(seconds)
        left = wait_for_end_of_all(process.pid)
        assert not left, f"`vllm {arguments[0]}` left {left} behind:\n{tail(log)}"
    except subprocess.TimeoutExpired:
        raise AssertionError(
            f"`vllm {arguments[0]}` still ran after {seconds} s:\n{tail(log)}"
        ) from None
    finally:
        kill_all(process.pid)
    return Ended(code, log.read_text(errors="replace"), time.monotonic() - started)
