# SPDX-License-Identifier: Apache-2.0
"""What an attack is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.forms import Files


@dataclass(frozen=True)
class Scene:
    """Where an attack takes place.

    Attributes:
        folder: empty; what the attack leaves there is loaded.
        canary: what runs code makes this file.
        forms: valid checkpoints by name.
        random: decides everything.
    """

    folder: Path
    canary: Path
    forms: dict[str, Files]
    random: Random

    def write_form(self, name: str | None = None) -> Files:
        """Write a valid checkpoint (any one) and return its files."""
        if name is None:
            name = self.random.choice(sorted(self.forms))
        for file, content in self.forms[name].items():
            (self.folder / file).write_bytes(content)
        return self.forms[name]


@dataclass(frozen=True)
class Attack:
    """A hostile checkpoint.

    Attributes:
        name: for the report.
        make: fills the scene's folder; may return another path to load.
        refused: it must not load.
    """

    name: str
    make: Callable[[Scene], Path | None]
    refused: bool


ATTACKS: list[Attack] = []
"""Every attack of the modules `attack_*`, in the order of their import."""


def attack(*, refused: bool) -> Callable[[Callable[[Scene], Path | None]], None]:
    """Put a function on the list."""

    def add(make: Callable[[Scene], Path | None]) -> None:
        ATTACKS.append(Attack(make.__name__.replace("_", " "), make, refused))

    return add
