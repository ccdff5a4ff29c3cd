# SPDX-License-Identifier: Apache-2.0
"""The output folder is replaced as a whole or stays as it was."""

import shutil
from pathlib import Path

import pytest

from tests.unit.train.medusa2.runs import contents
from vllm_medusa.errors import OutputError
from vllm_medusa.train.medusa2.output import claimed, new_output

RENAMES = 5
"""Two former entries out of the way, three new ones to their names."""


class Killed(BaseException):
    """What no handler may count on."""


def write(folder: Path, text: str, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).mkdir()
        (folder / name / "file").write_text(text)
    (folder / "quality.json").write_text(text)


def former(output: Path) -> dict[str, bytes]:
    output.mkdir()
    write(output, "old", ("backbone",))
    (output / "notes").write_text("mine")
    return contents(output)


def replace(output: Path) -> None:
    with new_output(output) as new:
        write(new, "new", ("backbone", "heads"))


REPLACED = {
    "backbone/file": b"new",
    "heads/file": b"new",
    "quality.json": b"new",
    "notes": b"mine",
}


def fail_at(monkeypatch: pytest.MonkeyPatch, chosen: int, *, lasting: bool) -> None:
    """Let the rename with this number fail, and all after it if `lasting`."""
    rename, count = Path.rename, 0

    def failing(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == chosen or (lasting and count > chosen):
            raise OSError(5, "Input/output error", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)


def test_entries_replace_the_former_ones(tmp_path: Path) -> None:
    output = tmp_path / "output"
    former(output)
    replace(output)
    assert contents(output) == REPLACED
    assert not {".new", ".old"} & {path.name for path in output.iterdir()}


@pytest.mark.parametrize("number", range(1, RENAMES + 1))
def test_failed_rename_leaves_the_former_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    output = tmp_path / "output"
    before = former(output)
    with monkeypatch.context() as patched:
        fail_at(patched, number, lasting=False)
        with pytest.raises(OutputError, match="Input/output error"):
            replace(output)
    assert contents(output) == before
    assert {path.name for path in output.iterdir()} == {
        "backbone",
        "notes",
        "quality.json",
    }


@pytest.mark.parametrize("number", range(1, RENAMES + 1))
@pytest.mark.parametrize("undone", range(4))
def test_next_run_finds_the_former_output_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, undone: int
) -> None:
    # The swap stops at a rename, its undoing some renames later, and so does the
    # next run's attempt.
    output = tmp_path / "output"
    before = former(output)
    with monkeypatch.context() as patched:
        fail_at(patched, number, lasting=True)
        with pytest.raises(OutputError):
            replace(output)
    with monkeypatch.context() as patched:
        fail_at(patched, undone + 1, lasting=True)
        try:
            with claimed(output):
                pass
        except OutputError:
            pass
    with claimed(output):
        assert contents(output) == before
    replace(output)
    assert contents(output) == REPLACED


def test_complete_swap_stays_when_killed_before_clearing_away(tmp_path: Path) -> None:
    output = tmp_path / "output"
    former(output)
    replace(output)
    (output / ".new").mkdir()
    (output / ".old" / "backbone").mkdir(parents=True)
    with claimed(output):
        assert contents(output) == REPLACED
        assert not (output / ".old").exists()


def test_what_was_not_complete_is_cleared_away(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(Killed), new_output(output) as new:
        write(new, "new", ("backbone",))
        shutil.copytree(new, tmp_path / "half")
        raise Killed
    assert not output.exists()
    before = former(output)
    shutil.copytree(tmp_path / "half", output / ".new")
    with claimed(output):
        assert contents(output) == before


def test_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    mkdir = Path.mkdir

    def refusing(path: Path, *args: object, **options: bool) -> None:
        if path.parent == output:
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refusing)
    with pytest.raises(OutputError, match="Permission denied"), claimed(output):
        pytest.fail("claimed")
