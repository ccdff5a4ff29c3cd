# SPDX-License-Identifier: Apache-2.0
"""Entry point of the `vllm-medusa` command.

A subcommand is a module of this package with the constants `NAME` and `HELP` and
the functions `add_arguments(parser)` and `run(args) -> int`. It imports what is
heavy inside `run`, so that `vllm-medusa --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, Protocol, cast

from vllm_medusa import __version__
from vllm_medusa.errors import MedusaError

SUBCOMMANDS = (
    "demo",
    "where",
    "doctor",
    "inspect",
    "convert",
    "plan",
    "tree",
    "distill",
    "train",
    "calibrate",
    "evaluate",
)
"""Modules of `vllm_medusa.cli`, in the order in which `--help` lists them."""

USAGE_ERROR = 2
"""Exit code for bad input, as argparse uses it."""


class Subcommand(Protocol):
    """What a module of this package offers to be a subcommand."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommand's own arguments to `parser`."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


def load_subcommand(module: str) -> Subcommand:
    """Import the module of one subcommand."""
    return cast(Subcommand, importlib.import_module(f"vllm_medusa.cli.{module}"))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command with all its subcommands."""
    parser = argparse.ArgumentParser(
        prog="vllm-medusa",
        description="Medusa speculative decoding for stock vLLM.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in SUBCOMMANDS:
        subcommand = load_subcommand(module)
        subparser = subparsers.add_parser(
            subcommand.NAME,
            help=subcommand.HELP,
            description=f"{subcommand.HELP[0].upper()}{subcommand.HELP[1:]}.",
        )
        subcommand.add_arguments(subparser)
        subparser.set_defaults(run=subcommand.run)
    return parser


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that whatever is open is closed and tidied up."""
    raise _TerminatedError


def _interruption(error: BaseException | None) -> BaseException | None:
    """The interruption that led to an error: what PyTorch does to close a file that it
    was writing fails in turn, and hides it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program name), return the exit code.

    A `MedusaError` becomes one line on stderr and exit code 2; an interruption by
    the user exit code 130, by SIGTERM 143. Other errors are bugs and keep their
    traceback.
    """
    args = build_parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return int(args.run(args))
    except (Exception, KeyboardInterrupt) as error:
        interruption = _interruption(error)
        if isinstance(interruption, _TerminatedError):
            print("terminated", file=sys.stderr)
            return 128 + signal.SIGTERM
        if interruption is not None:
            print("interrupted", file=sys.stderr)
            return 130
        if isinstance(error, MedusaError):
            print(f"error: {error}", file=sys.stderr)
            return USAGE_ERROR
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
