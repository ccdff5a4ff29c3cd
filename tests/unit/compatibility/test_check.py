# SPDX-License-Identifier: Apache-2.0
"""The comparison of the installed vLLM with hooks.json, and the refusal."""

from __future__ import annotations

import inspect
import linecache
import logging
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import vllm
import vllm.v1.worker.cpu_worker
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from tests.runner import RUNNER
from vllm_medusa import compatibility, plugin
from vllm_medusa.compatibility import ALLOW_UNKNOWN, Hook, check, require
from vllm_medusa.errors import UnsupportedError
from vllm_medusa.function_source import source_hash

MINOR = ".".join(vllm.__version__.split(".")[:2])
KNOWN = compatibility.known_versions()[MINOR]
SAMPLE = "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample"
ROOT = Path(vllm.__file__).parents[1]


def used(platform: str, runner: str) -> list[Hook]:
    return [hook for hook in KNOWN.hooks if hook.is_used(platform, runner)]


def failed() -> dict[str, str]:
    return {finding.name: finding.detail for finding in check() if not finding.ok}


def another_sample(self: Any, logits: Any, metadata: Any) -> None:
    return None


def test_supported_versions() -> None:
    assert list(compatibility.known_versions()) == ["0.32", "0.33"]


def test_the_installed_vllm_is_as_known() -> None:
    plugin.register()  # our own wrappers must not count as changes
    assert failed() == {}
    require()


def test_one_finding_per_function() -> None:
    findings = check()
    assert findings[0].name == "vllm"
    assert findings[0].detail.startswith(vllm.__version__)
    assert [f.name for f in findings[1:]] == [hook.name for hook in used("cpu", RUNNER)]


@pytest.mark.parametrize("hook", KNOWN.hooks, ids=lambda hook: hook.name)
def test_files_and_loaded_functions_give_the_source_of_inspect(hook: Hook) -> None:
    module, _, qualname = hook.name.partition(":")
    written = compatibility.written_source(ROOT, hook.name, hook.through)
    assert written is not None
    assert source_hash(written) == hook.sha256
    if module.endswith(".flashinfer"):
        pytest.skip("the module imports a package that only a GPU needs")
    target: Any = __import__(module, fromlist=["_"])
    for name in qualname.split("."):
        target = getattr(target, name)
    target = getattr(target, "fn", target)  # a kernel
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(target)))
    assert written == source
    function = compatibility._loaded_function(hook, sys.modules)
    assert function is not None
    assert compatibility._loaded_source(function) == source


def test_modules_are_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for hook in KNOWN.hooks:
        for name in filter(None, (hook.name, hook.through)):
            monkeypatch.delitem(sys.modules, name.partition(":")[0], raising=False)
    before = set(sys.modules)
    assert failed() == {}
    assert {name for name in set(sys.modules) - before if "vllm" in name} == set()


def test_functions_of_other_platforms_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compatibility, "_platform", lambda: "tpu")
    names = {finding.name for finding in check()[1:]}
    assert names == {hook.name for hook in used("tpu", RUNNER)}
    assert names
    assert all(h.platform == "any" for h in KNOWN.hooks if h.name in names)


def test_functions_of_the_other_runner_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {}
    for asked, runner in (("0", "v1"), ("1", "v2")):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", asked)
        names = {finding.name for finding in check()[1:]}
        assert names == {hook.name for hook in used("cpu", runner)}
        assert (SAMPLE in names) is (runner == "v1")
        counts[runner] = len(names)
    assert len(used("cuda", "v2")) > counts["v2"] > 40 > 20 < counts["v1"]


def test_a_replaced_function_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GPUModelRunner, "_sample", another_sample)
    assert list(failed()) == [SAMPLE]
    with pytest.raises(UnsupportedError) as refusal:
        require()
    message = str(refusal.value)
    replaced = f"{SAMPLE} is replaced by {__name__}:another_sample"
    for part in (replaced, "0.32.0, 0.33.0", f"{ALLOW_UNKNOWN}=1"):
        assert part in message
    assert "\n" not in message


def test_a_method_put_between_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPUModelRunner, "_sample", another_sample, raising=False)
    assert list(failed()) == [SAMPLE]


def test_a_missing_function_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GPUModelRunner, "_calc_spec_decode_metadata")
    ((name, detail),) = failed().items()
    assert name.endswith(":GPUModelRunner._calc_spec_decode_metadata")
    assert detail == f"is missing, unlike in vLLM {KNOWN.version}"


def test_other_code_under_the_same_name_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "another.py"
    file.write_text("def _sample(self, logits, metadata):\n    return None\n")
    scope: dict[str, Any] = {"__name__": GPUModelRunner.__module__}
    exec(compile(file.read_text(), str(file), "exec"), scope)  # noqa: S102
    scope["_sample"].__qualname__ = "GPUModelRunner._sample"
    monkeypatch.setattr(GPUModelRunner, "_sample", scope["_sample"])
    assert failed() == {SAMPLE: f"is not that of vLLM {KNOWN.version}"}
    file.unlink()
    linecache.clearcache()
    problem = "is not defined where it was, unlike in"
    assert failed() == {SAMPLE: f"{problem} vLLM {KNOWN.version}"}


def test_a_replaced_static_method_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineArgs, "add_cli_args", staticmethod(lambda parser: parser))
    assert list(failed()) == ["vllm.engine.arg_utils:EngineArgs.add_cli_args"]


def test_only_the_first_few_functions_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("_sample", "_prepare_inputs", "execute_model", "sample_tokens")
    for name in names:
        monkeypatch.setattr(GPUModelRunner, name, another_sample)
    assert len(failed()) == 4
    with pytest.raises(UnsupportedError, match=r"and 1 more\.") as refusal:
        require()
    assert sum(f"GPUModelRunner.{name} " in str(refusal.value) for name in names) == 3


def copy_of_vllm(folder: Path, change: tuple[str, str]) -> Path:
    """Copy the modules of `SAMPLE` below `folder`, with one text replaced."""
    for name in ("gpu_model_runner", "cpu_model_runner"):
        path = Path("vllm", "v1", "worker", f"{name}.py")
        text = (ROOT / path).read_text()
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text.replace(*change))
    return folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("no such text", ""), True),
        (("return sampler_output\n", "return sampler_output  # !\n"), False),
        (("def _sample(", "def _sample_tokens("), False),
        (
            ("    def _sync_device(", "    def _sample(self): ...\n\n    def _sync("),
            False,
        ),
    ],
    ids=["same", "changed", "renamed", "overridden between"],
)
def test_a_vllm_that_is_not_imported(
    tmp_path: Path, change: tuple[str, str], expected: bool
) -> None:
    (hook,) = (hook for hook in KNOWN.hooks if hook.name == SAMPLE)
    root = copy_of_vllm(tmp_path, change)
    assert (compatibility._difference(hook, root, {}) is None) is expected


def test_an_unknown_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "__version__", "0.34.1")
    assert failed() == {"vllm": "0.34.1 is not supported"}
    with pytest.raises(UnsupportedError, match=r"0\.34\.1 is not supported.*0\.33\.0"):
        require()


@pytest.mark.parametrize("version", [f"{MINOR}.9", f"{MINOR}.0rc1+cpu"])
def test_the_functions_decide_within_a_minor_version(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    require()


def test_a_development_build_without_a_version_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm, "__version__", "dev")
    with pytest.raises(UnsupportedError, match="vLLM dev is not supported"):
        require()


def test_the_environment_variable_makes_it_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records: list[logging.LogRecord] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    monkeypatch.setattr(vllm, "__version__", "0.35.0")
    monkeypatch.setenv(ALLOW_UNKNOWN, "1")
    logger = logging.getLogger("vllm.medusa")
    handler, level = Collect(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        require()
        require()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    (record,) = records
    assert record.levelno == logging.WARNING
    assert "0.35.0 is not supported" in record.getMessage()


@pytest.mark.parametrize("value", ["", "0", "no"])
def test_other_values_of_the_variable_refuse(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(vllm, "__version__", "0.35.0")
    monkeypatch.setenv(ALLOW_UNKNOWN, value)
    with pytest.raises(UnsupportedError):
        require()


def test_an_installation_without_hashes_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compatibility, "patches_folder", lambda: tmp_path)
    compatibility.known_versions.cache_clear()
    with pytest.raises(UnsupportedError, match="incomplete"):
        check()
