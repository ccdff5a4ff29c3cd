# SPDX-License-Identifier: Apache-2.0
"""scripts/setup_next.py on a small wheel, without pip and without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    "vllm/__init__.py": "__version__ = '9.9.0'\n",
    "vllm/data/model.json": "{}",
    "vllm/_C_cuda.abi3.so": "compiled for a GPU",
    "vllm/third_party/kernel.cuh": "for a GPU",
    "vllm/vllm-rs": "a program",
    "vllm-9.9.0.dist-info/METADATA": "Name: vllm\nVersion: 9.9.0\nSummary: x\n",
    "vllm-9.9.0.dist-info/RECORD": "vllm/__init__.py,,\n",
}


def build_wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with lists, cache and kernels of its own; pip gives a small wheel."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location(
        "setup_next", ROOT / "scripts" / "setup_next.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    wheel = build_wheel(tmp_path / "vllm-9.9.0-py3-none-any.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    module.WHEEL_LIST = tmp_path / "next-vllm.txt"
    module.WHEEL_LIST.write_text(f"# next\nvllm==9.9.0 --hash=sha256:{digest}\n")
    module.EXTRA_LIST = tmp_path / "next.txt"
    module.EXTRA_LIST.write_text("extra==1\n")
    kernels = tmp_path / "site-packages" / "vllm"
    kernels.mkdir(parents=True)
    (kernels / "_C.abi3.so").write_text("compiled for a CPU")
    monkeypatch.setattr(module, "kernels_folder", lambda: kernels)
    monkeypatch.setattr(module, "check", lambda folder, version: None)
    module.commands = []

    def run(command: list[str], attempts: int = 1) -> None:
        module.commands.append(command)
        if "download" in command:
            (folder,) = (a.split("=", 1)[1] for a in command if "--dest=" in a)
            (Path(folder) / wheel.name).write_bytes(wheel.read_bytes())
        else:
            (folder,) = (a.split("=", 1)[1] for a in command if "--target=" in a)
            (Path(folder) / "extra.py").touch()

    monkeypatch.setattr(module, "run", run)
    return module


def test_folder(setup: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Python files of the next version, kernels of the installed one, for the CPU."""
    assert setup.main([]) == 0
    folder = setup.overlay()
    assert (folder / "vllm/__init__.py").read_text() == FILES["vllm/__init__.py"]
    assert (folder / "vllm/data/model.json").exists()
    assert (folder / "extra.py").exists()
    kernels = list((folder / "vllm").rglob("*.so"))
    assert [kernel.name for kernel in kernels] == ["_C.abi3.so"]
    assert kernels[0].resolve() == setup.kernels_folder() / "_C.abi3.so"
    names = {path.name for path in folder.rglob("*")}
    assert names.isdisjoint({"kernel.cuh", "vllm-rs", "RECORD"})
    metadata = folder / "vllm-9.9.0+cpu.dist-info" / "METADATA"
    assert "\nVersion: 9.9.0+cpu\n" in metadata.read_text()
    assert [path.name for path in folder.parent.glob(".*")] == []

    capsys.readouterr()
    assert setup.main(["--path"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"


def test_nothing_is_done_when_up_to_date(setup: ModuleType) -> None:
    assert setup.main([]) == 0
    del setup.commands[:]
    assert setup.main([]) == 0
    assert setup.commands == []


def test_made_again_without_a_download_when_a_list_changes(setup: ModuleType) -> None:
    assert setup.main([]) == 0
    del setup.commands[:]
    setup.EXTRA_LIST.write_text("extra==2\n")
    stale = setup.overlay() / "stale.py"
    stale.touch()
    assert setup.main([]) == 0
    assert not stale.exists()
    assert ["install" in command for command in setup.commands] == [True]


def test_failure_keeps_the_wheel_and_leaves_no_folder(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(folder: Path, version: str) -> None:
        raise setup.SetupError(f"vLLM {version} does not import")

    with monkeypatch.context() as patched:
        patched.setattr(setup, "check", fail)
        assert setup.main([]) == 1
    assert "vLLM 9.9.0 does not import" in capsys.readouterr().err
    cache = setup.overlay().parent
    assert sorted(p.name for p in cache.iterdir() if p.is_dir()) == ["wheels"]
    del setup.commands[:]
    assert setup.main([]) == 0
    assert ["install" in command for command in setup.commands] == [True]


def test_failed_download(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(command: list[str], attempts: int = 1) -> None:
        raise setup.SetupError("pip: hashes do not match")

    monkeypatch.setattr(setup, "run", fail)
    assert setup.main([]) == 1
    assert "hashes do not match" in capsys.readouterr().err
    wheels = setup.overlay().parent / "wheels"
    assert list(wheels.iterdir()) == []
    assert not setup.overlay().exists()


def test_damaged_wheel_is_removed(
    setup: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.main([]) == 0
    (wheel,) = (setup.overlay().parent / "wheels").iterdir()
    wheel.write_bytes(b"not a zip file")
    setup.EXTRA_LIST.write_text("extra==2\n")
    assert setup.main([]) == 1
    assert "was damaged" in capsys.readouterr().err
    assert setup.main([]) == 0


@pytest.mark.parametrize(
    ("break_it", "words"),
    [("kernels", "run `make setup` first"), ("list", "pins no vLLM")],
)
def test_what_is_missing_is_named(
    setup: ModuleType, break_it: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if break_it == "kernels":
        (setup.kernels_folder() / "_C.abi3.so").unlink()
    else:
        setup.WHEEL_LIST.write_text("vllm==9.9.0\n")
    assert setup.main([]) == 1
    assert words in capsys.readouterr().err


def test_a_vllm_that_does_not_import_is_shown(tmp_path: Path) -> None:
    """The real check, in a process of its own."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import setup_next
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no kernel inside')\n")
    with pytest.raises(setup_next.SetupError, match="no kernel inside"):
        setup_next.check(tmp_path, "9.9.0")
