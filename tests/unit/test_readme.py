# SPDX-License-Identifier: Apache-2.0
"""The README names every option, command and target, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from vllm import SamplingParams

from vllm_medusa import MedusaConfig
from vllm_medusa.acceptance import EXACT, Acceptance
from vllm_medusa.cli.main import SUBCOMMANDS, load_subcommand
from vllm_medusa.request_options import KEYS, RequestOptions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def first_cells(header: str) -> list[str]:
    """What stands in code marks at the start of each row below a header."""
    table = README.split(f"\n| {header} |", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE)


def test_options() -> None:
    assert first_cells("option") == list(MedusaConfig.model_fields)


def test_options_of_a_request() -> None:
    table = README.split("\n| key |", 1)[1].split("\n\n", 1)[0]
    cells = re.findall(r"^\| (`[^|]+)\|", table, flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(KEYS)


def test_commands() -> None:
    words = [command.split() for command in first_cells("command")]
    assert {program for program, *_ in words} == {"vllm-medusa"}
    known = {load_subcommand(module).NAME for module in SUBCOMMANDS}
    assert {name for _, name, *_ in words} == known


def test_modules_of_the_architecture_exist() -> None:
    table = README.split("\n| path |", 1)[1].split("\n\n", 1)[0]
    rows = table.splitlines()[2:]
    names = [n for row in rows for n in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert names
    assert [n for n in names if not (ROOT / "vllm_medusa" / n).exists()] == []


def test_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE))
    (others,) = re.findall(r"other targets: ([^.]*)\.", README)
    assert named | set(re.findall(r"`([a-z-]+)`", others)) == targets


def python_calls() -> list[ast.Call]:
    """Calls in the README's Python examples."""
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    trees = [ast.parse(example) for example in examples]
    return [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)]


def keyword_values(name: str) -> list[Any]:
    """What the examples give for a keyword, as values."""
    return [
        ast.literal_eval(keyword.value)
        for call in python_calls()
        for keyword in call.keywords
        if keyword.arg == name
    ]


def test_the_engine_of_the_examples_is_possible() -> None:
    (config,) = keyword_values("speculative_config")
    assert MedusaConfig.from_speculative_config(config).heads == "default"


def test_the_request_of_the_examples_is_possible() -> None:
    (extra_args,) = keyword_values("extra_args")
    params = SamplingParams(temperature=1.0, extra_args=extra_args)
    asked = Acceptance(scheme="typical", epsilon=0.15)
    assert RequestOptions.of(params, EXACT) == RequestOptions(asked)
