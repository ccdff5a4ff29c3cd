# SPDX-License-Identifier: Apache-2.0
"""What `vllm-medusa plan` works out is what a started engine has, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from vllm import LLM
from vllm.model_executor.model_loader import base_loader

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import DEFAULTS, engine
from tests.runner import RUNNER
from vllm_medusa.config import MedusaConfig
from vllm_medusa.planning.plan import make_plan
from vllm_medusa.planning.request import Options, resolve

pytestmark = pytest.mark.engine

GROUPS = ("attention", "mlp", "embedding", "lm_head", "replicated")
KEYS = ("max_model_len", "max_num_seqs", "kv_cache_memory_bytes", "block_size", "dtype")


@dataclass(frozen=True)
class Started:
    """What an engine says of itself, and what the plan said."""

    plan: dict[str, Any]
    memory: dict[str, int]
    num_blocks: int
    bytes_per_token: int


@pytest.fixture
def parameter_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each model's parameters as loaded: the CPU backend then packs them into
    memory of oneDNN and leaves empty tensors behind."""
    counted = []
    process = base_loader.process_weights_after_loading

    def count(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        counted.append(sum(parameter.nbytes for parameter in model.parameters()))
        process(model, *args, **kwargs)

    monkeypatch.setattr(base_loader, "process_weights_after_loading", count)
    return counted


@contextmanager
def started(
    model: str | Path, heads: str | Path, text: str, **options: Any
) -> Iterator[Started]:
    """An engine with the heads' options `text`, beside its plan."""
    settings = {**DEFAULTS, **options}
    medusa = MedusaConfig.parse(f"medusa:{heads}?{text}")
    plan = make_plan(
        resolve(
            Options(
                base=str(model),
                heads=medusa.to_text(),
                gpu="cpu",
                **{key: settings[key] for key in KEYS},
            )
        )
    )
    with engine(model, medusa.to_speculative_config(), **options) as llm:
        yield Started(plan, *_facts(llm))


def _facts(llm: LLM) -> tuple[dict[str, int], int, int]:
    (memory,) = llm.collective_rpc("medusa_memory")
    config = llm.llm_engine.vllm_config
    (specs,) = llm.collective_rpc("get_kv_cache_spec")
    pages = sum(spec.page_size_bytes for spec in specs.values())
    return (
        memory,
        config.cache_config.num_gpu_blocks,
        pages // config.cache_config.block_size,
    )


def check(facts: Started, parameter_bytes: list[int]) -> None:
    plan = facts.plan["memory"]["medusa"]
    exact, cache = plan["exact"], plan["kv_cache"]
    assert parameter_bytes == [sum(exact[group] for group in GROUPS)]
    assert exact["heads_blocks"] + exact["heads_projections"] == facts.memory["heads"]
    assert cache["bytes_per_token"] == facts.bytes_per_token
    assert cache["num_blocks"] == facts.num_blocks
    if RUNNER == "v2":
        # Model Runner V1 keeps nothing on the device between steps.
        buffers = exact["draft_probs"] + exact["tree_buffers"]
        assert buffers == facts.memory["buffers"]


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("llama_tied", "tree=beam:3x2&num_heads=2"),
        ("qwen2", "tree=4x2&acceptance=rejection"),
    ],
)
def test_tiny(
    tiny: Callable[[str], TinyModel],
    parameter_bytes: list[int],
    family: str,
    text: str,
) -> None:
    model = tiny(family)
    with started(model.path, model.heads, text) as facts:
        check(facts, parameter_bytes)


def test_default_model(parameter_bytes: list[int]) -> None:
    """Heads of another kind, over a reduced vocabulary, in 16 bits."""
    from vllm_medusa.default_model import model_path

    options = {"dtype": "bfloat16", "max_model_len": 512, "block_size": 64}
    with started(model_path(), "default", "draft_vocab=2048", **options) as facts:
        check(facts, parameter_bytes)
