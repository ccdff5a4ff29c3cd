# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa doctor`: versions, hooks, and whether the pieces fit."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_medusa.diagnosis import Check

NAME = "doctor"
HELP = "check versions, hooks and settings; exit code 1 if something stops Medusa"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis; 0 if Medusa can run, 1 if something stops it."""
    # vLLM logs at import; the diagnosis says what matters.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm_medusa.diagnosis import diagnose

    checks = diagnose()
    healthy = all(check.status != "problem" for check in checks)
    if args.json:
        content = {"ok": healthy, "checks": [asdict(check) for check in checks]}
        print(json.dumps(content, indent=2))
    else:
        _print_table(checks)
        print("Medusa can run." if healthy else "Medusa can't run: see the problems.")
    return 0 if healthy else 1


def _print_table(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    table = Table()
    table.add_column("check", no_wrap=True)
    table.add_column("status")
    table.add_column("detail", overflow="fold")
    for check in checks:
        status = Text(check.status, style=styles[check.status])
        table.add_row(Text(check.name), status, Text(check.detail))
    Console().print(table)
