# SPDX-License-Identifier: Apache-2.0
"""Cases of options: the text form, the dict form and the command lines."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.command_lines import COMMANDS, FLAGS
from tests.fuzz.forms import make_forms
from tests.fuzz.mutate_bytes import mutate_bytes
from tests.fuzz.mutate_json import mutate_json
from tests.fuzz.option_values import (
    HEADS,
    KEYS,
    OBJECTS,
    TREES,
    VALUES,
    hostile_text,
    mutate_text,
)
from vllm_medusa.cli import main as command
from vllm_medusa.config import MedusaConfig
from vllm_medusa.errors import MedusaError
from vllm_medusa.tree import parse_tree

_ACCURACIES = tuple((0.4, 0.3, 0.1) for _ in range(4))
_NUMBERS = ("0", "1", "-1", "9" * 30, "nan", "inf", "1e999", "x", "", "0.5", "1024")
_TREE_FILE = b'{"paths": [[0], [1], [0, 0]], "source": "measured"}'


@dataclass(frozen=True)
class Case:
    """One use of options; attributes as in `checkpoint_cases.Case`."""

    name: str
    folder: Path
    writable: Path
    canary: Path
    value: Any
    refused: bool = False
    most_seconds: float = 1.0
    most_bytes: int = 128 << 20

    @property
    def longest(self) -> int:
        """Twice the command line: the system repeats a name that is too long."""
        is_command = self.name.startswith("command")
        return 2 * sum(map(len, self.value)) if is_command else 0


_scratch = Path()


def prepare(scratch: Path) -> None:
    """Make heads to ask for, stop each long command where its work begins, warm up."""
    global _scratch
    _scratch = scratch.parent
    heads = make_forms(scratch)["canonical, mlp"]
    (_scratch / "heads").mkdir()
    for name, content in heads.items():
        (_scratch / "heads" / name).write_bytes(content)
    (_scratch / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    (_scratch / "folder.json").mkdir()
    _stop_before_work()
    for index, name in enumerate(COMMANDS):
        own = _scratch / f"warm {index}"
        (own / "out").mkdir(parents=True)
        warm = Case(
            "command", own, own / "out", own, [*name.split(), *COMMANDS[name][0]]
        )
        _enter(warm)
        with contextlib.suppress(MedusaError):
            run(warm)
    for words in (
        ["inspect", "a/b"],
        ["inspect", "default"],
        ["evaluate", "--suite", "all", "--prompts", "prompts.jsonl"],
        ["plan", str(_scratch / "heads"), "default", "--json"],
        ["calibrate", "none", str(_scratch / "heads"), "--plots", "plots"],
        ["tree", "show", "beam:5x3"],
    ):
        with contextlib.suppress(MedusaError):
            run(Case("command", own, own / "out", own, words))
    os.chdir("/")


def _stop_before_work() -> None:
    from vllm_medusa.cli import calibrate
    from vllm_medusa.evaluation import measure
    from vllm_medusa.train import pipeline

    def stop(*arguments: Any, **named: Any) -> Any:
        raise _ReachedError("the work would begin")

    calibrate._measure = stop
    measure.Measurement.run = stop  # type: ignore[method-assign]
    pipeline.train = stop


class _ReachedError(MedusaError):
    """The command was about to load a model: all its options are possible."""


def make(number: int, random: Random, scratch: Path) -> Case:
    """Make a text, a dict, a tree or a command line."""
    (scratch / "out").mkdir()
    kinds = (_text, _text, _options, _fields, _tree, _tree_file, _command, _command)
    kind = kinds[number % len(kinds)]
    name, value = kind(random, scratch)
    case = Case(name, _scratch, scratch / "out", scratch / "canary", value)
    _enter(case)
    return case


def _enter(case: Case) -> None:
    """What is written under a relative name lands where it may."""
    os.chdir(case.writable)
    for name in ("heads", "folder.json", "prompts.jsonl"):
        (case.writable / name).symlink_to(_scratch / name)
    for name, source in (("tree.json", "tree.json"), ("accuracies.json",) * 2):
        (case.writable / name).symlink_to(_scratch / "heads" / source)


def run(case: Case) -> str:
    """Use the options.

    Raises:
        MedusaError: they were refused.
    """
    if case.name == "text":
        _round_trip(MedusaConfig.parse(case.value))
    elif case.name == "options":
        _round_trip(MedusaConfig.from_speculative_config(case.value))
    elif case.name == "fields":
        _round_trip(MedusaConfig(**case.value))
    elif case.name == "tree":
        value, num_heads, accuracies = case.value
        tree = parse_tree(value, num_heads=num_heads, accuracies=accuracies)
        assert 1 <= tree.num_nodes <= 1024
    else:
        return _run_command(case.value)
    return ""


def _round_trip(config: MedusaConfig) -> None:
    assert MedusaConfig.parse(config.to_text()) == config
    options = config.to_speculative_config()
    assert MedusaConfig.from_speculative_config(options) == config
    assert MedusaConfig(**config.as_dict()) == config
    assert MedusaConfig.model_validate_json(config.model_dump_json()) == config


def _run_command(words: list[str]) -> str:
    written = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    complaint = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(complaint):
        try:
            code: Any = command.main(words)
        except SystemExit as stopped:  # argparse
            code = stopped.code
    for stream in (written, complaint):
        stream.seek(0)
    if code == 0:
        return written.read()[:2000]
    text = complaint.read()
    # `plan` ends with 1 where the engine would not fit.
    assert code == 2 or (code == 1 and words[0] == "plan"), (code, text)
    raise _RefusedError(_own_words(text))


class _RefusedError(MedusaError):
    """What a command wrote to stderr."""


def _own_words(text: str) -> str:
    """The message without what argparse repeats of the command line as it stands."""
    if "usage: " in text:
        return f"argparse explains the usage in {len(text)} characters"
    return text.strip() or "refused without a word"


def _text(random: Random, scratch: Path) -> tuple[str, Any]:
    kind = random.random()
    if kind < 0.1:
        return "text", random.choice(("medusa:", "")) + hostile_text(random)
    text = "medusa:" + random.choice(HEADS)
    if random.random() < 0.3:
        text += "@" + random.choice(VALUES["revision"])
    pairs = [
        f"{key}={random.choice(VALUES[key])}"
        for key in random.choices(KEYS, k=random.choice((0, 1, 1, 2, 4, 9)))
    ]
    if random.random() < 0.02 and sum(map(len, pairs)) < 500:
        pairs *= 2000
    text += "?" * bool(pairs) + "&".join(pairs)
    return "text", mutate_text(text, random) if kind < 0.5 else text


def _some_fields(random: Random) -> dict[Any, Any]:
    fields: dict[Any, Any] = {}
    for key in random.choices(KEYS, k=random.choice((1, 1, 2, 3))):
        given = (*OBJECTS, *VALUES[key])
        fields[key] = random.choice(given)
    return fields


def _options(random: Random, scratch: Path) -> tuple[str, Any]:
    fields = {"method": "medusa", "model": "heads", **_some_fields(random)}
    kind = random.random()
    if kind < 0.05:
        fields["method"] = random.choice(OBJECTS)
    elif kind < 0.1:
        fields[random.choice((3, None, (), b"tree", 10**5000))] = 1
    elif kind < 0.15:
        return "options", random.choice(OBJECTS)
    return "options", fields


def _fields(random: Random, scratch: Path) -> tuple[str, Any]:
    return "fields", {"heads": "heads", **_some_fields(random)}


def _tree(random: Random, scratch: Path) -> tuple[str, Any]:
    value = random.choice((*TREES, *TREES, *OBJECTS))
    if isinstance(value, str) and random.random() < 0.3:
        value = mutate_text(value, random)
    accuracies = random.choice((None, _ACCURACIES, random.choice(OBJECTS)))
    return "tree", (value, random.choice((None, 1, 4)), accuracies)


def _tree_file(random: Random, scratch: Path) -> tuple[str, Any]:
    change = random.choice((mutate_json, mutate_bytes))
    (scratch / "t.json").write_bytes(change(_TREE_FILE, random))
    return "tree", (str(scratch / "t.json"), random.choice((None, 1, 4)), None)


def _command(random: Random, scratch: Path) -> tuple[str, Any]:
    name = random.choice(sorted(COMMANDS))
    words, options = COMMANDS[name]
    line = [*name.split(), *words]
    if name == "tree show":
        line.append(random.choice(TREES))
    for option in random.choices(options, k=random.choice((0, 1, 1, 2))):
        line.append(option)
        if option not in FLAGS:
            values = (*_NUMBERS, *_NUMBERS, *TREES, *HEADS, "x=tree=" + TREES[2])
            line.append(random.choice(values))
    if random.random() < 0.3:
        at = random.randrange(1, len(line))
        line[at] = random.choice((mutate_text(line[at], random), *HEADS))
    return f"command {name}", line
