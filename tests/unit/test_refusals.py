# SPDX-License-Identifier: Apache-2.0
"""What Medusa can't run on is refused by name, before a model is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import envs
from vllm.platforms import current_platform

from vllm_medusa.engine_config import OPTIONS_KEY, WORKERS, _worker_cls
from vllm_medusa.errors import CheckpointError, UnsupportedError
from vllm_medusa.refusals import verify_vllm_config


def vllm_config(
    model: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    heads: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A configuration that Medusa runs on, but for the given fields."""
    supported = {
        "model": "org/base",
        "runner_type": "generate",
        "is_encoder_decoder": False,
        "is_attention_free": False,
        "is_hybrid": False,
        "use_mla": False,
        "uses_mrope": False,
        "is_multimodal_model": False,
        "enable_trace_replay": False,
        "return_sampling_mask": False,
        "rswa_window": None,
        "is_mm_prefix_lm": False,
        "enable_prompt_embeds": False,
        "is_diffusion": False,
        "get_hidden_size": lambda: 64,
        "get_vocab_size": lambda: 100,
    }
    sizes = {"hidden_size": 64, "vocab_size": 100} | (heads or {})
    alone = {
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "enable_batch_sharded_sampling": False,
        "use_ubatching": False,
        "enable_elastic_ep": False,
        "is_moe_model": False,
        "enable_expert_parallel": False,
        "data_parallel_size": 1,
        "distributed_executor_backend": "mp",
    }
    fields: dict[str, Any] = {
        "additional_config": {OPTIONS_KEY: {"config": {"heads": "org/heads"}} | sizes},
        "use_v2_model_runner": False,
        "scheduler_config": SimpleNamespace(async_scheduling=False),
        "cache_config": SimpleNamespace(kv_sharing_fast_prefill=False),
        "parallel_config": SimpleNamespace(**alone | (parallel or {})),
        "model_config": SimpleNamespace(**supported | (model or {})),
        "kv_transfer_config": None,
        "aux_output_config": SimpleNamespace(enabled=False),
        "engram_config": None,
    }
    return SimpleNamespace(**fields | options)


def test_data_parallel_dense_model_is_supported() -> None:
    verify_vllm_config(vllm_config(parallel={"data_parallel_size": 2}))


def test_supported() -> None:
    verify_vllm_config(vllm_config())
    verify_vllm_config(vllm_config(heads={"vocab_size": None}))
    verify_vllm_config(
        vllm_config(
            use_v2_model_runner=True,
            scheduler_config=SimpleNamespace(async_scheduling=True),
        )
    )


def test_an_engine_without_medusa_is_not_looked_at() -> None:
    for additional in ({}, {"other": 1}, None):
        config = vllm_config({"use_mla": True}, additional_config=additional)
        verify_vllm_config(config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"runner_type": "pooling"}, "runner type 'pooling'"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"is_attention_free": True}, "without attention"),
        ({"is_hybrid": True}, "recurrent"),
        ({"use_mla": True}, "MLA"),
        ({"uses_mrope": True}, "M-RoPE"),
        ({"is_multimodal_model": True}, "multimodal"),
    ],
)
def test_model_features(model: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{message}.*serve org/base without it"):
        verify_vllm_config(vllm_config(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": {"pipeline_parallel_size": 2}}, "--pipeline-parallel-size 2"),
        (
            {"parallel": {"decode_context_parallel_size": 4}},
            "--decode-context-parallel-size 4: use 1",
        ),
        (
            {"parallel": {"prefill_context_parallel_size": 2}},
            "--prefill-context-parallel-size 2: use 1",
        ),
        (
            {"parallel": {"is_moe_model": True, "enable_expert_parallel": True}},
            "drop --enable-expert-parallel",
        ),
        (
            {"parallel": {"is_moe_model": True, "data_parallel_size": 2}},
            "--data-parallel-size 2",
        ),
        (
            {"parallel": {"distributed_executor_backend": "external_launcher"}},
            "external_launcher: use mp or ray",
        ),
        (
            {"heads": {"config": {"heads": "org/heads", "attention": "cascade"}}},
            "attention=cascade is for Model Runner V2",
        ),
        (
            {"scheduler_config": SimpleNamespace(async_scheduling=True)},
            "V1 does not support --async-scheduling",
        ),
    ],
)
def test_engine_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        verify_vllm_config(vllm_config(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watermark_config": object()}, "watermarking"),
        (
            {"parallel": {"enable_batch_sharded_sampling": True}},
            "--no-enable-batch-sharded-sampling",
        ),
        ({"parallel": {"use_ubatching": True}}, "--enable-dbo"),
        (
            {"cache_config": SimpleNamespace(kv_sharing_fast_prefill=True)},
            "--kv-sharing-fast-prefill",
        ),
        ({"model": {"enable_trace_replay": True}}, "--enable-trace-replay"),
        ({"model": {"return_sampling_mask": True}}, "--return-sampling-mask"),
        ({"model": {"rswa_window": 128}}, "reference sliding window"),
        ({"model": {"is_mm_prefix_lm": True}}, "bidirectional prefixes"),
    ],
)
def test_what_model_runner_v2_would_not_ask_the_verifier(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        verify_vllm_config(vllm_config(use_v2_model_runner=True, **options))


def test_batch_invariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert envs.VLLM_BATCH_INVARIANT
    with pytest.raises(UnsupportedError, match="VLLM_BATCH_INVARIANT"):
        verify_vllm_config(vllm_config(use_v2_model_runner=True))


def test_no_v1_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    with pytest.raises(UnsupportedError, match="unset VLLM_USE_V2_MODEL_RUNNER"):
        verify_vllm_config(vllm_config())


def test_worker_by_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _worker_cls() == WORKERS["cpu"]
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    with pytest.raises(UnsupportedError, match="does not run on the platform"):
        _worker_cls()
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    assert _worker_cls() == WORKERS["cuda"]


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size"])
def test_heads_of_another_model(key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"org/heads have {key} 7 but org/base"):
        verify_vllm_config(vllm_config(heads={key: 7}))
