# SPDX-License-Identifier: Apache-2.0
"""Requests with LoRA adapters beside plain ones: each has the text of plain vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig
from vllm import LLM
from vllm.lora.request import LoRARequest

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, greedy, stats, token_ids
from tests.runner import sample

pytestmark = pytest.mark.engine

RANK, ALPHA = 8, 16
COUNT, LENGTH = sample((24, 32), (9, 16))
# One place more than adapters: on a CPU vLLM 0.32 gives requests without an adapter
# the last place's (index -1), which is zero as long as it is free.
OPTIONS: dict[str, Any] = {
    "enable_lora": True,
    "max_loras": 3,
    "max_lora_rank": RANK,
}


def save_adapter(model: Path, folder: Path, *, seed: int) -> Path:
    """Save a random adapter of attention, MLPs and the LM head."""
    config = AutoConfig.from_pretrained(model)
    width = config.hidden_size
    outer = config.num_attention_heads * config.head_dim
    # [out_features, in_features] of each adapted projection
    shapes = {
        "self_attn.q_proj": (outer, width),
        "self_attn.v_proj": (config.num_key_value_heads * config.head_dim, width),
        "mlp.down_proj": (width, config.intermediate_size),
    }
    modules = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(config.num_hidden_layers)
        for name, shape in shapes.items()
    }
    modules["lm_head"] = (config.vocab_size, width)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out_features, in_features) in modules.items():
        down = torch.randn(RANK, in_features, generator=generator)
        up = torch.randn(out_features, RANK, generator=generator)
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = down * in_features**-0.5
        tensors[f"{prefix}.lora_B.weight"] = 0.3 * up * RANK**-0.5
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted({name.split(".")[-1] for name in modules}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder


@pytest.fixture(scope="module")
def adapters(
    llama: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> list[LoRARequest | None]:
    """No adapter, one, another: what requests have in turn."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        None,
        *(
            LoRARequest(
                name, seed, str(save_adapter(llama.path, folder / name, seed=seed))
            )
            for seed, name in enumerate(("one", "other"), start=1)
        ),
    ]


def run(
    llm: LLM, prompts: list[list[int]], adapters: list[LoRARequest | None]
) -> list[list[int]]:
    return token_ids(
        llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            greedy(LENGTH),
            lora_request=adapters,
            use_tqdm=False,
        )
    )


def test_adapters(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    adapters: list[LoRARequest | None],
) -> None:
    prompts = prompts[:COUNT]
    by_request = [adapters[index % 3] for index in range(COUNT)]
    with engine(llama.path, **OPTIONS) as llm:
        expected = run(llm, prompts, by_request)
    with engine(
        llama.path, {"model": llama.heads, "tree": "optimal:12"}, **OPTIONS
    ) as llm:
        texts = run(llm, prompts, by_request)
        mixed = stats(llm)
        alone = run(llm, prompts[1::3], by_request[1::3])
        counters = stats(llm)
    assert texts == expected
    assert alone == expected[1::3]
    assert counters["accepted"] > mixed["accepted"] > 0
    assert counters["moved"] > 0
    # Adapters change texts; requests without one keep theirs.
    assert texts[0::3] == [text[:LENGTH] for text in plain[:COUNT:3]]
    for index in range(1, COUNT, 3):
        assert texts[index] != plain[index][:LENGTH]
