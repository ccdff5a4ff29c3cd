# SPDX-License-Identifier: Apache-2.0
"""Cases of damaged and hostile checkpoints, and what is done with each of them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from tests.fuzz import (
    attack_archives,
    attack_json,
    attack_names,
    attack_pickles,
    attack_safetensors,
)
from tests.fuzz.attacks import ATTACKS, Scene
from tests.fuzz.forms import Files, make_forms
from tests.fuzz.mutate_bytes import mutate_bytes
from tests.fuzz.mutate_json import mutate_json
from vllm_medusa.checkpoint import load_heads, safetensors_file
from vllm_medusa.cli import convert, inspect
from vllm_medusa.config import MedusaConfig
from vllm_medusa.errors import MedusaError
from vllm_medusa.tree import from_file, load_accuracies
from vllm_medusa.tree.resolve import resolve_batch_table, resolve_tree

MODULES = (
    attack_archives,
    attack_json,
    attack_names,
    attack_pickles,
    attack_safetensors,
)
"""Importing them has filled `ATTACKS`."""

_forms: dict[str, Files] = {}


@dataclass(frozen=True)
class Case:
    """One checkpoint.

    Attributes:
        name: its kind.
        folder: below it lies all that may be read.
        writable: below it may be written.
        path: what is loaded.
        canary: exists once foreign code ran.
        refused: it must not load.
        random: decides what else is asked for.
        longest: of texts that the user gave, which a message may repeat.
        most_seconds: of CPU time.
        most_bytes: of memory beyond what was there before.
    """

    name: str
    folder: Path
    writable: Path
    path: Path
    canary: Path
    refused: bool
    random: Random
    longest: int = 0
    most_seconds: float = 5.0
    most_bytes: int = 512 << 20


def prepare(scratch: Path) -> None:
    """Make the valid checkpoints, load each, and tell the audit hooks of safe_open."""
    upstream = safetensors_file.safe_open

    def safe_open(path: str, **arguments: object) -> object:
        sys.audit("medusa.safe_open", path)
        return upstream(path, **arguments)

    safetensors_file.safe_open = safe_open  # type: ignore[assignment]
    _forms.update(make_forms(scratch))
    for name in _forms:
        folder = scratch / f"warm {name}"
        (folder / "in").mkdir(parents=True)
        for file, content in _forms[name].items():
            (folder / "in" / file).write_bytes(content)
        case = Case(
            name,
            folder / "in",
            folder / "out",
            folder / "in",
            folder / "no",
            False,
            Random(0),
        )
        for _ in range(12):
            run(case)
    with contextlib.suppress(MedusaError):
        load_heads(scratch / "none")


def make(number: int, random: Random, scratch: Path) -> Case:
    """Make a checkpoint: every attack once, then one of them or a mutation."""
    folder, writable = scratch / "in", scratch / "out"
    folder.mkdir()
    canary = scratch / "canary"
    path, refused = folder, False
    if number < len(ATTACKS) or random.random() < 0.3:
        chosen = ATTACKS[number % len(ATTACKS)]
        name, refused = chosen.name, chosen.refused
        path = chosen.make(Scene(folder, canary, _forms, random)) or folder
    else:
        form = random.choice(sorted(_forms))
        name = f"mutated {form}"
        files = dict(_forms[form])
        for _ in range(random.choice((1, 1, 1, 2))):
            file = random.choice(sorted(files))
            is_json = file.endswith(".json") and random.random() < 0.5
            change = mutate_json if is_json else mutate_bytes
            with contextlib.suppress(ValueError):  # no longer JSON, after a first one
                files[file] = change(files[file], random)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    return Case(name, folder, writable, path, canary, refused, random)


def run(case: Case) -> str:
    """Do what the plugin and its commands do with a checkpoint.

    Raises:
        MedusaError: it was refused.
    """
    random, path = case.random, case.path
    # Of fewer heads only some are read, and what is wrong may be in the others.
    num_heads = None if case.refused else random.choice((None, None, None, 1, 2))
    has_map = any(word in case.name for word in ("token map", "mlp"))
    draft_vocab = 2 if has_map and random.random() < 0.2 else None
    checkpoint = load_heads(path, num_heads=num_heads, draft_vocab=draft_vocab)
    shapes = {name: tuple(t.shape) for name, t in checkpoint.tensors.items()}
    assert shapes == checkpoint.spec.tensor_shapes()
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())
    config = MedusaConfig(heads=str(path), num_heads=num_heads)
    tree = resolve_tree(config, checkpoint.folder, checkpoint.spec.num_heads)
    resolve_batch_table(config, checkpoint.folder, tree)
    # Where calibration.json tells the same, the engine does not read these.
    for name, read in (("accuracies.json", load_accuracies), ("tree.json", from_file)):
        if os.path.lexists(checkpoint.folder / name):
            read(checkpoint.folder / name)
    written = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    if random.random() < 0.2:
        with contextlib.redirect_stdout(written):
            inspect._print(inspect.describe(checkpoint))
    if random.random() < 0.2:
        case.writable.mkdir(exist_ok=True)
        target = case.writable / "converted"
        convert.convert(path, target, force=True)
        again = load_heads(target)
        whole = load_heads(path)
        for name, tensor in whole.tensors.items():
            assert torch.equal(again.tensors[name], tensor), name
    written.seek(0)
    return written.read()
