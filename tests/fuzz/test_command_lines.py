# SPDX-License-Identifier: Apache-2.0
"""The command lines are made of options that exist, with values where they take one."""

from __future__ import annotations

import re

import pytest

from tests.fuzz.command_lines import COMMANDS, FLAGS
from vllm_medusa.cli.main import build_parser


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_the_commands_own(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, options = COMMANDS[name]
    with pytest.raises(SystemExit):
        build_parser().parse_args([*name.split(), "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    known = re.findall(r"--[a-z0-9-]+", usage)
    assert {word for word in (*words, *options) if word.startswith("--")} <= {*known}
    without_value = set(re.findall(r"\[(--[a-z0-9-]+)\]", usage))
    assert {*options} & without_value == {*options} & {*FLAGS}
