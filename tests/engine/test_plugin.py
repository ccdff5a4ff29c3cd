# SPDX-License-Identifier: Apache-2.0
"""The plugin inside vLLM: silent unless asked for, one clear error if asked wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.worker.cpu.model_runner import CPUModelRunner as CPUModelRunnerV2
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import DEFAULTS, engine, generate, greedy, token_ids
from tests.runner import sample
from vllm_medusa import MedusaConfig
from vllm_medusa.checkpoint import save_heads
from vllm_medusa.errors import (
    CheckpointError,
    ConfigError,
    MedusaError,
    TreeError,
    UnsupportedError,
)
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.plugin import register

pytestmark = pytest.mark.engine
# Also where processes are started that would not run in the interpreter.
once = pytest.mark.runner("v1", reason="no model runs: the same with every runner")


def engine_args(model: Path, **options: Any) -> EngineArgs:
    return EngineArgs(**{**DEFAULTS, "model": str(model), **options})


def run_python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it prints last."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()[-1]


DESCRIBE = """
import json, sys
from vllm import plugins
from vllm.engine.arg_utils import EngineArgs
plugins.load_general_plugins()
config = EngineArgs(**json.loads({options!r})).create_engine_config()
print(json.dumps({{
    "text": str(config),
    "hash": config.compute_hash(),
    "worker": config.parallel_config.worker_cls,
    "additional": config.additional_config,
    "loaded": sorted(m for m in sys.modules if m.startswith("vllm_medusa.")),
}}))
"""


@once
def test_silent_without_the_flag(llama: TinyModel) -> None:
    """The whole configuration equals that of a vLLM which may not load the plugin."""
    options = json.dumps({**DEFAULTS, "model": str(llama.path)})
    code = DESCRIBE.format(options=options)
    silent = json.loads(run_python(code))
    absent = json.loads(run_python(code, VLLM_PLUGINS=""))
    assert "vllm_medusa.arguments" in silent["loaded"], "the plugin was not loaded"
    assert absent["loaded"] == []
    for key in ("text", "hash", "worker", "additional"):
        assert silent[key] == absent[key]
    # Neither heads nor runner come along.
    heavy = ("runner", "attention", "heads", "propose", "worker")
    assert not [m for m in silent["loaded"] if m.split(".")[1] in heavy]


@once
def test_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, vllm_medusa, vllm_medusa.plugin; "
        "print(sorted({'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_plain_engine_after_medusa(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """An engine with Medusa leaves nothing behind for a plain one in its process."""
    with engine(llama.path, {"model": llama.heads, "tree": "2x2"}) as llm:
        generate(llm, prompts[:2], greedy(4))
    with engine(llama.path) as llm:
        executor = llm.llm_engine.engine_core.engine_core.model_executor
        worker = executor.driver_worker.worker
        assert type(worker) is CPUWorker
        assert type(worker.model_runner) is sample(CPUModelRunner, CPUModelRunnerV2)
        layers = worker.model_runner.compilation_config.static_forward_context
        assert layers
        for layer in layers.values():
            assert type(layer.impl).__module__.startswith("vllm.")
        texts = token_ids(generate(llm, prompts[:4], greedy(8)))
        assert texts == [text[:8] for text in plain[:4]]


@once
def test_other_speculation_is_untouched(llama: TinyModel) -> None:
    config = engine_args(
        llama.path,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 3,
        },
    ).create_engine_config()
    assert config.speculative_config.method == "ngram"
    assert "medusa" not in config.parallel_config.worker_cls.lower()
    assert not config.additional_config
    # What vLLM refuses beside its own speculative decoding it still refuses.
    with pytest.raises(VLLMValidationError, match="min_p and logit_bias"):
        SamplingParams(logit_bias={5: 1.0})._validate_spec_decode(
            config.speculative_config
        )


def parse(*arguments: str) -> EngineArgs:
    register()
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return AsyncEngineArgs.from_cli_args(parser.parse_args(list(arguments)))


@once
def test_flag_is_in_the_help() -> None:
    register()
    register()  # idempotent: a second flag would be an argparse error
    text = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).format_help()
    assert "--speculative-model" in text
    assert "medusa:HEADS" in text


@pytest.mark.smoke
def test_three_ways_in_one_configuration(llama: TinyModel) -> None:
    """The flag, the JSON and the program's MedusaConfig end in the same engine."""
    tree = "optimal:6"
    common = [f"--model={llama.path}", "--dtype=float32", "--max-model-len=320"]
    flag = parse(*common, f"--speculative-model=medusa:{llama.heads}?tree={tree}")
    options = {"method": "medusa", "model": str(llama.heads), "tree": tree}
    text = parse(*common, f"--speculative-config={json.dumps(options)}")
    program = parse(*common)
    program.speculative_config = MedusaConfig(
        heads=str(llama.heads), tree=tree
    ).to_speculative_config()
    configs = [args.create_engine_config() for args in (flag, text, program)]
    first = configs[0]
    assert first.speculative_config.num_speculative_tokens == 6
    assert first.parallel_config.worker_cls == "vllm_medusa.worker.MedusaCPUWorker"
    for config in configs[1:]:
        assert config.additional_config == first.additional_config
        assert config.parallel_config.worker_cls == first.parallel_config.worker_cls
        assert (
            config.speculative_config.num_speculative_tokens
            == first.speculative_config.num_speculative_tokens
        )


@once
def test_flag_reaches_processes_that_load_plugins_later(llama: TinyModel) -> None:
    """The second of several API servers is started with the first one's arguments."""
    register()
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    flag = f"--speculative-model=medusa:{llama.heads}?tree=chain:2"
    arguments = parser.parse_args([f"--model={llama.path}", flag])
    first = AsyncEngineArgs.from_cli_args(arguments)
    upstream = EngineArgs.from_cli_args.__func__.__wrapped__
    second = upstream(AsyncEngineArgs, arguments)
    assert second.speculative_config == first.speculative_config
    assert second.speculative_config["method"] == "medusa"
    again = AsyncEngineArgs.from_cli_args(arguments)
    assert again.speculative_config == first.speculative_config


@once
def test_flag_and_json_together(llama: TinyModel) -> None:
    with pytest.raises(ConfigError, match="both given"):
        parse(
            f"--model={llama.path}",
            f"--speculative-model=medusa:{llama.heads}",
            '--speculative-config={"method": "ngram", "num_speculative_tokens": 2}',
        )


def _other_heads(folder: Path, hidden_size: int, vocab_size: int) -> Path:
    import torch

    spec = HeadsSpec(
        num_heads=1, hidden_size=hidden_size, vocab_size=vocab_size, projection="own"
    )
    tensors = {name: torch.zeros(shape) for name, shape in spec.tensor_shapes().items()}
    return save_heads(folder, spec, tensors)


# name: (options; "model" relative to tmp_path or absent, error, what it must say)
MISTAKES: dict[str, tuple[dict[str, Any], type[MedusaError], str]] = {
    "no such folder": ({"model": "./nowhere/at all"}, CheckpointError, "nowhere"),
    "no heads given": ({}, ConfigError, "model"),
    "unknown key": ({"tre": "chain"}, ConfigError, "tre"),
    "unknown tree": ({"tree": "banyan"}, ConfigError, "banyan"),
    "tree deeper than heads": ({"tree": "chain:5"}, TreeError, "5 deep"),
    "tree deeper than heads used": (
        {"tree": "2x2x2", "num_heads": 2},
        ConfigError,
        "3 deep but there are only 2 heads",
    ),
    "tree with a gap": ({"tree": [[0], [1, 0]]}, ConfigError, "[1, 0]"),
    "more heads than there are": ({"num_heads": 9}, ConfigError, "9"),
    "no heads": ({"num_heads": 0}, ConfigError, "num_heads"),
    "draft_vocab without token_map": ({"draft_vocab": 10}, ConfigError, "draft_vocab"),
    "acceptance": ({"acceptance": "hopeful"}, ConfigError, "hopeful"),
    "batch table": (
        {"num_speculative_tokens_per_batch_size": [[1, 2, 99]], "tree": "chain"},
        ConfigError,
        "99",
    ),
    "hidden size": ({"model": "hidden"}, CheckpointError, "hidden_size"),
    "vocabulary": ({"model": "vocab"}, CheckpointError, "vocab"),
}


@once
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_clear_error(
    llama: TinyModel, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All raised while the configuration is made: no model is loaded for them."""
    monkeypatch.chdir(tmp_path)
    hidden_size = llama.fitted.blocks.shape[-1]
    vocab_size = llama.fitted.projections.shape[1]
    _other_heads(tmp_path / "hidden", hidden_size * 2, vocab_size)
    _other_heads(tmp_path / "vocab", hidden_size, vocab_size - 1)
    options, error, words = MISTAKES[name]
    options = {"model": str(llama.heads), **options}
    if options["model"] in ("hidden", "vocab"):
        options["model"] = str(tmp_path / options["model"])
    if name == "no heads given":
        del options["model"]
    args = engine_args(llama.path, speculative_config={"method": "medusa", **options})
    with pytest.raises(error) as raised:
        args.create_engine_config()
    assert words in str(raised.value)


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "pipeline": {"pipeline_parallel_size": 2},
    "other worker": {"worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker"},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_combinations(llama: TinyModel, name: str) -> None:
    args = engine_args(
        llama.path,
        speculative_config={"method": "medusa", "model": str(llama.heads)},
        **UNSUPPORTED[name],
    )
    with pytest.raises((UnsupportedError, ConfigError)):
        args.create_engine_config()


def test_tokenizer_is_not_needed(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """Token ids in, token ids out: the plugin asks nothing of the tokenizer."""
    with engine(
        llama.path, {"model": llama.heads, "tree": "chain"}, skip_tokenizer_init=True
    ) as llm:
        params = greedy(12, detokenize=False)
        texts = token_ids(generate(llm, prompts[:4], params))
    assert texts == [text[:12] for text in plain[:4]]
