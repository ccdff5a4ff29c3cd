# SPDX-License-Identifier: Apache-2.0
"""Whole runs with an engine without a model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.distill.toy import (
    NoProgress,
    ToyEngine,
    content,
    mixed,
    options,
    use,
)
from vllm_medusa.distill.manifest import NAME
from vllm_medusa.distill.run import distill
from vllm_medusa.distill.source_option import SourceOption
from vllm_medusa.errors import ConfigError, OutputError
from vllm_medusa.locks import exclusive
from vllm_medusa.train.answers import read_answers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, ToyEngine())
        distill(mixed(folder, folder / "out"), NoProgress())
    return content(folder / "out")


def same(folder: Path, whole: dict[str, bytes]) -> bool:
    """Whether a folder's files are those, but for where its sources lay."""
    found = content(folder / "out")
    shards = {name for name in whole if name != NAME}
    manifests = [json.loads(files[NAME]) for files in (whole, found)]
    for manifest in manifests:
        del manifest["fingerprint"], manifest["options"]["sources"]
    return (
        found.keys() == whole.keys()
        and all(found[name] == whole[name] for name in shards)
        and manifests[0] == manifests[1]
    )


def test_what_a_run_makes(whole: dict[str, bytes]) -> None:
    manifest = json.loads(whole[NAME])
    totals = manifest["totals"]
    assert manifest["complete"]
    assert totals["prompts"] == 44
    assert len(manifest["shards"]) == len(whole) - 1 >= 5
    # 10 and 11 stand in both files.
    assert totals["left_out"]["duplicate prompts"] >= 2
    assert set(totals["answers_by_source"]) == {
        "prompts:prompts.txt",
        "sharegpt:chats.json",
        "templates",
        "self",
    }
    assert totals["prompts_by_source"]["prompts:prompts.txt"] == 12
    assert totals["answers_by_task"]["things"] >= 24
    assert set(totals["answers_by_temperature"]) == {"0.0", "0.7"}
    assert totals["answers_by_turn"]["1"] > 10
    lines = [
        json.loads(line)
        for name, data in whole.items()
        if name != NAME
        for line in data.splitlines()
    ]
    assert len(lines) == totals["answers"] == sum(totals["answers_by_turn"].values())
    firsts = {(r["id"], r["prompt"].lower()) for r in lines if r["turn"] == 0}
    assert len(firsts) == len({prompt for _, prompt in firsts}) == 44


def test_training_reads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ToyEngine())
    manifest = distill(mixed(tmp_path, tmp_path / "out"), NoProgress())
    answers = read_answers(tmp_path / "out")
    assert len(answers) == manifest.totals()["answers"]
    assert sum(len(a.answer_token_ids) for a in answers) == manifest.totals()["tokens"]
    with pytest.raises(ConfigError, match=r"holds no answers-\*.jsonl"):
        read_answers(tmp_path)


@pytest.mark.parametrize("killed_at", range(1, 24, 4))
def test_interrupted_anywhere_a_run_ends_with_the_same_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, bytes],
    killed_at: int,
) -> None:
    def interrupt(call: int) -> None:
        if call == killed_at:
            raise KeyboardInterrupt

    engine = use(monkeypatch, ToyEngine(interrupt))
    with pytest.raises(KeyboardInterrupt):
        distill(mixed(tmp_path, tmp_path / "out"), NoProgress())
    assert engine.is_closed
    assert len(content(tmp_path / "out")) < len(whole)
    use(monkeypatch, ToyEngine())
    distill(mixed(tmp_path, tmp_path / "out"), NoProgress())
    assert same(tmp_path, whole)


KILLED = """
import os, signal, sys
from pathlib import Path

import pytest

from tests.unit.distill import toy
from vllm_medusa import files
from vllm_medusa.distill.run import distill

folder, killed_at = Path(sys.argv[1]), int(sys.argv[2])
written = 0

def replace(source, target, original=os.replace):
    # Before or after a file gets its name.
    global written
    written += 1
    if written == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)
    if written == -killed_at:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
with pytest.MonkeyPatch.context() as patch:
    toy.use(patch, toy.ToyEngine())
    distill(toy.mixed(folder, folder / "out"), toy.NoProgress())
"""


@pytest.mark.parametrize("killed_at", [1, -1, 4, -5])
def test_killed_while_a_file_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, bytes],
    killed_at: int,
) -> None:
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(killed_at)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert ended.returncode == -signal.SIGKILL
    use(monkeypatch, ToyEngine())
    distill(mixed(tmp_path, tmp_path / "out"), NoProgress())
    assert same(tmp_path, whole)


def test_a_complete_run_starts_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ToyEngine())
    distill(mixed(tmp_path, tmp_path / "out"), NoProgress())
    before = content(tmp_path / "out")
    monkeypatch.setattr("vllm_medusa.distill.run.start_engine", None)
    assert distill(mixed(tmp_path, tmp_path / "out"), NoProgress()).is_complete
    assert content(tmp_path / "out") == before


def test_a_number_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ToyEngine())
    found = mixed(tmp_path, tmp_path / "out", num_prompts=None, num_tokens=1500)
    totals = distill(found, NoProgress()).totals()
    # At most the answers to one prompt too many: two samples of two turns.
    assert 1500 <= totals["tokens"] < 1500 + 4 * 30


def test_without_a_budget_every_prompt_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ToyEngine())
    path = tmp_path / "p.txt"
    path.write_text("".join(f"prompt {n}\n" for n in range(20)))
    sources = (SourceOption("prompts", str(path)),)
    manifest = distill(options(tmp_path / "out", sources=sources), NoProgress())
    assert manifest.totals()["prompts"] == 20
    assert len(manifest.shards) == 2


def test_other_options_in_the_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ToyEngine())
    found = mixed(tmp_path, tmp_path / "out")
    distill(found, NoProgress())
    other = mixed(tmp_path, tmp_path / "out", seed=1, top_p=0.9)
    with pytest.raises(ConfigError, match=r"with other options \(seed, top_p\)"):
        distill(other, NoProgress())
    (tmp_path / "prompts.txt").write_text("something else\n")
    with pytest.raises(ConfigError, match=r"with other options \(prompts_read\)"):
        distill(found, NoProgress())


def test_what_others_did_in_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(call: int) -> None:
        if call == 12:
            raise KeyboardInterrupt

    output = tmp_path / "out"
    found = mixed(tmp_path, output)
    with exclusive(output, wait=False):
        pass  # the folder is made
    (output / "answers-00000.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"holds answers without a manifest\.json"):
        distill(found, NoProgress())
    (output / "answers-00000.jsonl").unlink()
    use(monkeypatch, ToyEngine(interrupt))
    with pytest.raises(KeyboardInterrupt):
        distill(found, NoProgress())
    with (output / "answers-00000.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(ConfigError, match=r"is damaged .*content is not what"):
        distill(found, NoProgress())
    (output / "answers-00000.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"is damaged .*No such file"):
        distill(found, NoProgress())
    (output / NAME).write_text("[]")
    with pytest.raises(ConfigError, match="is no manifest"):
        distill(found, NoProgress())


def test_one_process_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "out"
    script = (
        "import pathlib, sys; from vllm_medusa.locks import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), wait=False):\n"
        "    print('there', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline()
        with pytest.raises(OutputError, match="another process is at work in"):
            distill(mixed(tmp_path, output), NoProgress())
        assert other.stdin is not None
        other.stdin.close()


def test_before_the_first_shard_options_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(call: int) -> None:
        raise ConfigError("no engine")

    use(monkeypatch, ToyEngine(fail))
    with pytest.raises(ConfigError, match="no engine"):
        distill(mixed(tmp_path, tmp_path / "out"), NoProgress())
    use(monkeypatch, ToyEngine())
    other = mixed(tmp_path, tmp_path / "out", num_prompts=3)
    assert distill(other, NoProgress()).totals()["prompts"] == 3


def test_no_answers_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ToyEngine())
    found = mixed(tmp_path, tmp_path / "out", max_model_len=31, max_user_tokens=9)
    with pytest.raises(ConfigError, match=r"none brought an answer .*too long for the"):
        distill(found, NoProgress())
