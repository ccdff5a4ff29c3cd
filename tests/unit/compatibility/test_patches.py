# SPDX-License-Identifier: Apache-2.0
"""patches/: complete, applicable, and what its script would write."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import vllm
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadataBuilder
from vllm.v1.attention.backends import cpu_attn, flash_attn, triton_attn
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator
from vllm.v1.worker.gpu_worker import Worker

from vllm_medusa import gpu_worker, worker
from vllm_medusa.attention import cpu, gpu_flash_attn, gpu_triton_attn
from vllm_medusa.attention.tree_impl import TreeAttentionImpl
from vllm_medusa.attention.tree_metadata import TreeMetadataBuilder
from vllm_medusa.compatibility import module_file, written_source
from vllm_medusa.function_source import find_functions, source_hash
from vllm_medusa.metrics.observed_scheduling import ObservedScheduling
from vllm_medusa.runner import v1
from vllm_medusa.runner.timed_steps import TimedSteps
from vllm_medusa.runner.v2 import model_graphs, propose_graphs
from vllm_medusa.runner.v2.model_runner import MedusaModelRunner
from vllm_medusa.runner.v2.speculator import MedusaSpeculator

PATCHES = Path(__file__).parents[3] / "patches"
VERSIONS = ("0.32", "0.33")
MINOR = ".".join(vllm.__version__.split(".")[:2])
SITE = Path(vllm.__file__).parents[1]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update", PATCHES / "update.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def functions(version: str) -> dict[str, dict[str, str]]:
    content: dict[str, Any] = json.loads((PATCHES / version / "hooks.json").read_text())
    return content["functions"]


def changed(version: str) -> list[str]:
    entries = functions(version).items()
    return [name for name, entry in entries if entry["kind"] == "changes"]


OVERRIDES = [
    (v1.MedusaCPUModelRunner, CPUModelRunner),
    (worker.MedusaCPUWorker, CPUWorker),
    (gpu_worker.MedusaWorker, CPUWorker),
    (gpu_worker.MedusaGPUWorker, Worker),
    (MedusaModelRunner, GPUModelRunner),
    (model_graphs.TreeGraphManager, CudaGraphManager),
    (propose_graphs._BatchGraphs, CudaGraphManager),
    (MedusaSpeculator, BaseSpeculator),
    (ObservedScheduling, Scheduler),
    (TimedSteps, CPUModelRunner),
    (TimedSteps, GPUModelRunner),
    (TreeMetadataBuilder, AttentionMetadataBuilder),
    (TreeAttentionImpl, AttentionImpl),
    (cpu.TreeCPUAttentionBackend, cpu_attn.CPUAttentionBackend),
    (gpu_flash_attn.TreeFlashAttentionBackend, flash_attn.FlashAttentionBackend),
    (gpu_triton_attn.TreeTritonAttentionBackend, triton_attn.TritonAttentionBackend),
]


@pytest.mark.parametrize(("ours", "base"), OVERRIDES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_override_is_listed(version: str, ours: type, base: type) -> None:
    listed = functions(version)
    overridden = 0
    for name, value in vars(ours).items():
        theirs = getattr(base, name, None)
        function = inspect.unwrap(getattr(value, "__func__", value))
        if not inspect.isfunction(function) or not inspect.isroutine(theirs):
            continue
        theirs = inspect.unwrap(theirs)
        if not getattr(theirs, "__module__", "").startswith("vllm."):
            continue
        hook = f"{theirs.__module__}:{theirs.__qualname__}"
        assert hook in listed, f"{ours.__name__}.{name}"
        inherited = theirs.__qualname__ != f"{base.__name__}.{name}"
        through = f"{base.__module__}:{base.__name__}" if inherited else None
        assert listed[hook].get("through") in (through, THROUGH_CPU.get(hook))
        overridden += 1
    assert overridden


# Both workers take it; that of the CPU must not get a method of its own between.
THROUGH_CPU = {
    "vllm.v1.worker.gpu_worker:Worker.load_model": (
        "vllm.v1.worker.cpu_worker:CPUWorker"
    )
}

# What is mixed into vLLM's classes of each backend, by module and class. Read from the
# files: some of the modules import packages that only a GPU needs.
MIXED_IN = [
    (mixin, f"vllm.v1.attention.backends.{module}", cls)
    for mixin, suffix in (
        (TreeMetadataBuilder, "MetadataBuilder"),
        (TreeAttentionImpl, "Impl"),
    )
    for module, cls in (
        (
            "cpu_attn",
            f"CPUAttention{'Backend' if suffix == 'Impl' else ''}{suffix}",
        ),
        ("flash_attn", f"FlashAttention{suffix}"),
        ("triton_attn", f"TritonAttention{suffix}"),
        ("flashinfer", f"FlashInfer{suffix}"),
    )
]


@pytest.mark.parametrize(("mixin", "module", "cls"), MIXED_IN)
def test_every_method_behind_a_mixin_is_listed(
    mixin: type, module: str, cls: str
) -> None:
    text = module_file(SITE, module).read_text()
    defined = find_functions(text.splitlines(keepends=True))
    behind = [f"{cls}.{n}" for n in vars(mixin) if f"{cls}.{n}" in defined]
    assert behind
    methods = {f"{module}:{name}" for name in behind}
    # A constructor is called, not changed.
    methods.discard(f"{module}:{cls}.__init__")
    assert methods <= functions(MINOR).keys()


def test_flashinfer_backend_is_listed() -> None:
    """Its module can't be imported here."""
    backend = "vllm.v1.attention.backends.flashinfer:FlashInferBackend"
    for name in ("get_impl_cls", "get_builder_cls"):
        assert f"{backend}.{name}" in changed(MINOR)


@pytest.mark.parametrize("version", VERSIONS)
def test_wrapped_configuration_is_listed(version: str) -> None:
    wrapped = {"__post_init__", "_get_v2_model_runner_unsupported_features"}
    if version != "0.32":
        wrapped.add("_maybe_disable_dynamic_sd_for_v1")
    prefix = "vllm.config.vllm:VllmConfig."
    listed = {n.removeprefix(prefix) for n in changed(version) if n.startswith(prefix)}
    assert listed == wrapped


@pytest.mark.parametrize("version", VERSIONS)
def test_wrapped_engine_arguments_are_listed(version: str) -> None:
    for name in ("add_cli_args", "from_cli_args", "create_engine_config"):
        assert f"vllm.engine.arg_utils:EngineArgs.{name}" in changed(version)


def test_all_versions_list_the_same_functions() -> None:
    """But for those that came with a later version."""
    lists = [
        {
            name: {key: entry[key] for key in entry if key != "sha256"}
            for name, entry in functions(version).items()
            if entry.get("since", VERSIONS[0]) <= VERSIONS[0]
        }
        for version in VERSIONS
    ]
    assert lists[0] == lists[1]
    for version in VERSIONS:
        assert all(
            e.get("since", version) <= version for e in functions(version).values()
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_one_patch_per_changed_function(version: str) -> None:
    expected = {script.patch_name(name) for name in changed(version)}
    assert {path.name for path in (PATCHES / version).glob("*.patch")} == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_headers_and_hunks_are_well_formed(version: str) -> None:
    content = json.loads((PATCHES / version / "hooks.json").read_text())
    for name in changed(version):
        path = PATCHES / version / script.patch_name(name)
        entry = content["functions"][name]
        assert path.read_text().startswith(script.header(name, entry, content["vllm"]))
        counts = subprocess.run(
            ["git", "apply", "--numstat", str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        module = name.partition(":")[0].replace(".", "/")
        assert counts.split()[2] in (f"{module}.py", f"{module}/__init__.py")


@pytest.mark.parametrize("name", changed(MINOR))
def test_patch_changes_its_function_and_nothing_else(name: str, tmp_path: Path) -> None:
    patch = (PATCHES / MINOR / script.patch_name(name)).read_text()
    file = script.module_file(SITE, name.partition(":")[0])
    path = file.relative_to(SITE).as_posix()
    before = file.read_text()
    after = script.apply(patch, SITE, path)
    assert after is not None
    # Line numbers are right: writing the diff again gives the same text.
    diff = script.diff(path, before.splitlines(keepends=True), after)
    assert patch.endswith(f"\n\n{diff}")

    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("".join(after))
    assert outline("".join(after), name) == outline(before, name)
    source = written_source(tmp_path, name)
    assert source is not None
    assert source_hash(source) != functions(MINOR)[name]["sha256"]


def outline(text: str, name: str) -> str:
    """Dump a module's syntax tree with the body of one function emptied."""
    *owner, function = name.partition(":")[2].split(".")
    tree: Any = ast.parse(text)
    scopes = [tree]
    if owner:
        scopes = [n for n in tree.body if getattr(n, "name", None) == owner[0]]
    emptied = 0
    for scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.FunctionDef) and node.name == function:
                node.body, emptied = [ast.Pass()], emptied + 1
    assert emptied == 1
    return ast.dump(tree)


def test_a_patch_for_other_text_does_not_apply(tmp_path: Path) -> None:
    name = "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample"
    path = "vllm/v1/worker/gpu_model_runner.py"
    (tmp_path / path).parent.mkdir(parents=True)
    text = (SITE / path).read_text()
    patch = (PATCHES / MINOR / script.patch_name(name)).read_text()
    (tmp_path / path).write_text(f"# another first line\n{text}")
    assert script.apply(patch, tmp_path, path) is not None
    (tmp_path / path).write_text(text.replace("self.rejection_sampler(", "other("))
    assert script.apply(patch, tmp_path, path) is None


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the installed version's patches to start from, and one to write."""
    shutil.copytree(PATCHES / MINOR, tmp_path / "since")
    return tmp_path / "since", tmp_path / "new"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_script_reproduces_the_folder(folders: tuple[Path, Path]) -> None:
    since, new = folders
    version = json.loads((since / "hooks.json").read_text())["vllm"]
    assert script.update(SITE, version, since, new) == []
    assert contents(new) == contents(PATCHES / MINOR)


def test_script_fills_in_hashes_and_headers(folders: tuple[Path, Path]) -> None:
    since, new = folders
    content = json.loads((since / "hooks.json").read_text())
    for name, entry in content["functions"].items():
        del entry["sha256"]
        if entry["kind"] == "changes":
            path = since / script.patch_name(name)
            path.write_text(path.read_text().partition("\n\n")[2].split("\n\n", 1)[1])
    (since / "hooks.json").write_text(json.dumps(content))
    assert script.update(SITE, content["vllm"], since, new) == []
    assert contents(new) == contents(PATCHES / MINOR)


def test_script_leaves_what_it_cannot_do_to_a_person(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    since, new = folders
    root = tmp_path / "root"
    for name in functions(MINOR):
        file = script.module_file(SITE, name.partition(":")[0])
        (root / file.relative_to(SITE)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file.relative_to(SITE))
    runner = root / "vllm/v1/worker/gpu_model_runner.py"
    text = runner.read_text()
    text = text.replace("def _bookkeeping_sync(", "def _bookkeeping(")
    runner.write_text(text.replace("self.rejection_sampler(", "other("))
    sample, bookkeeping, forward = (
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample",
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync",
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.forward",
    )
    (since / script.patch_name(forward)).unlink()
    assert script.update(root, "9.9.9", since, new) == [
        f"{sample}: the patch does not apply",
        f"{bookkeeping}: gone",
        f"{forward}: has no patch",
    ]
    assert capsys.readouterr().out == f"{sample}: differs from that in since\n"
    written = json.loads((new / "hooks.json").read_text())
    assert written["vllm"] == "9.9.9"
    assert bookkeeping not in written["functions"]
    assert not (new / script.patch_name(sample)).exists()
