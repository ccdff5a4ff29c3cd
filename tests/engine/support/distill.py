# SPDX-License-Identifier: Apache-2.0
"""A tiny model that talks, and a `vllm-medusa distill` that asks it all there is."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.engine.support.engines import register_overrides_once
from tests.engine.support.models import EOS, build_model
from vllm_medusa.cli.main import main


def build_talker(folder: Path) -> Path:
    """Make a model that writes letters, and ends a turn after about ten of them."""
    build_model("llama", folder)
    weights = load_file(folder / "model.safetensors")
    letters = AutoTokenizer.from_pretrained(folder).encode("abcdefghijklmnopqrstuvw")
    head = torch.zeros_like(weights["lm_head.weight"])
    head[letters] = weights["lm_head.weight"][letters] * 2
    head[EOS] = weights["lm_head.weight"][EOS] * 3
    save_file(
        weights | {"lm_head.weight": head},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def command_for(talker: Path, folder: Path) -> list[str]:
    """All kinds of sources, two turns, two samples, several shards."""
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"tell me of {n} things\n" for n in range(20)))
    chats = folder / "chats.json"
    turns = [{"from": "human", "value": text} for text in ("how long", "and why")]
    chats.write_text(json.dumps([{"conversations": turns}]))
    return (
        f"distill {talker} --source prompts:{prompts} "
        f"--source sharegpt:{chats},task=chat --source templates "
        "--source self,weight=2 --num-prompts 16 --shard-prompts 10 "
        "--turns 2 --samples 2 --temperatures 0 0.8 --top-k 40 "
        "--max-answer-tokens 32 --max-model-len 320 --seed 5 "
        "--dtype float32 --kv-cache-gib 0.05"
    ).split()


def distill(command: list[str], output: Path, *options: str) -> dict[str, bytes]:
    """Run the command; return the files that it wrote."""
    register_overrides_once()
    assert main([*command, "--output", str(output), *options]) == 0
    return {path.name: path.read_bytes() for path in output.iterdir()}
