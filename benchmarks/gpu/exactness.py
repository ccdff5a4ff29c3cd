# SPDX-License-Identifier: Apache-2.0
"""Whether Medusa's text is plain vLLM's, and whether its steps wait for the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.gpu.engines import Setup, start
from benchmarks.gpu.models import Model
from benchmarks.gpu.worker_probe import PROBE
from vllm_medusa.engines.process import EngineError

PLAIN = "plain"
PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "List five fruits and their colours.",
    "Write a Python function that reverses a string.",
    "What is 17 times 23? Show the steps.",
    "Tell a story about a fox and a crow.",
    "Translate 'good morning' into Spanish and Italian.",
    "How does a refrigerator work?",
    "Give three tips for learning to swim.",
    "Who was Ada Lovelace?",
    "Describe the taste of a lemon.",
)
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.7": {"temperature": 0.7, "seed": 100},
    "temperature 1.0": {"temperature": 1.0, "seed": 200},
    "top-p": {"temperature": 1.0, "top_p": 0.9, "seed": 300},
    "top-k, min-p": {"temperature": 1.0, "top_k": 40, "min_p": 0.05, "seed": 400},
    "penalties": {
        "temperature": 0.8,
        "presence_penalty": 0.6,
        "repetition_penalty": 1.1,
        "seed": 500,
    },
}
"""Ways to draw; all but the first with seeds, so that plain vLLM's text is known."""

BEAM = "beam tree"
REJECTION = "rejection"
_TYPICAL = {"temperature": 0.7, "extra_args": {"medusa_acceptance": "typical"}}
_ENGINES: dict[str, dict[str, Any]] = {
    BEAM: {"tree": "beam:4x3"},
    REJECTION: {"acceptance": "rejection"},
}
"""Options of engines besides those of one implementation of attention each."""

_KV_BYTES = 1 << 30
_MAX_MODEL_LEN = 1024


def arguments(
    model: Model,
    dtype: str,
    attention: str | None,
    graphs: bool,
    setup: Setup,
    **medusa: Any,
) -> dict[str, Any]:
    """Arguments of `LLM`: plain vLLM if `attention` is None, else Medusa with the
    default tree unless `medusa` holds another."""
    options: dict[str, Any] = {
        **model.engine_arguments(),
        "dtype": dtype,
        "max_model_len": _MAX_MODEL_LEN,
        "max_num_seqs": len(PROMPTS),
        "kv_cache_memory_bytes": _KV_BYTES,
        "generation_config": "vllm",
        "worker_extension_cls": PROBE,
        "enforce_eager": not graphs,
        "seed": 0,
    }
    if setup.memory_bytes is not None:
        options["gpu_memory_utilization"] = 0.01
    if attention is not None:
        options["speculative_config"] = {
            "method": "medusa",
            "model": str(model.heads),
            "num_speculative_tokens_per_batch_size": None,
            **({} if attention == "auto" else {"attention": attention}),
            **medusa,
        }
    return options


def first_difference(text: Sequence[int], plain: Sequence[int]) -> int | None:
    """Where two texts part, in tokens; None if they are equal."""
    pairs = zip(text, plain, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None and len(text) != len(plain):
        return min(len(text), len(plain))
    return place


def compare_texts(
    texts: Mapping[str, Sequence[Sequence[int]]],
    plain: Mapping[str, Sequence[Sequence[int]]],
) -> dict[str, Any]:
    """For each way to draw: answers, and the prompts and places where they differ."""
    result = {}
    for name, answers in texts.items():
        pairs = zip(answers, plain[name], strict=True)
        places = {i: first_difference(a, b) for i, (a, b) in enumerate(pairs)}
        different = {i: place for i, place in places.items() if place is not None}
        result[name] = {"answers": len(answers), "different": different}
    return result


def check_texts(
    model: Model,
    dtype: str,
    attentions: Sequence[str],
    graph_modes: Sequence[bool],
    setup: Setup,
    max_tokens: int,
    ways: Mapping[str, dict[str, Any]] = SAMPLING,
) -> dict[str, Any]:
    """Compare all implementations of attention with plain vLLM in one dtype.

    Returns by engine what `compare_texts` found, or {"refused": reason}. EngineError
    if plain vLLM itself does not run.
    """
    options = {PLAIN: arguments(model, dtype, None, any(graph_modes), setup)}
    for attention in attentions:
        for graphs in graph_modes:
            name = f"{attention}, {'CUDA graphs' if graphs else 'eager'}"
            options[name] = arguments(model, dtype, attention, graphs, setup)
    graphs = any(graph_modes)
    options[BEAM] = arguments(model, dtype, "auto", graphs, setup, **_ENGINES[BEAM])
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        engines, refused = start(stack, options, setup.environment)
        if PLAIN in refused:
            raise EngineError(refused[PLAIN])
        found |= {name: {"refused": reason} for name, reason in refused.items()}
        texts: dict[str, dict[str, list[list[int]]]] = {}
        for name, engine in engines.items():
            try:
                texts[name] = {
                    way: engine.call(
                        "answer",
                        prompts=PROMPTS,
                        max_tokens=max_tokens,
                        sampling=sampling,
                    )
                    for way, sampling in ways.items()
                }
            except EngineError as error:
                found[name] = {"failed": str(error)}
        plain = texts.pop(PLAIN)
        found |= {name: compare_texts(text, plain) for name, text in texts.items()}
    return found


def check_synchronisation(
    model: Model, attentions: Sequence[str], setup: Setup, max_tokens: int
) -> dict[str, Any]:
    """Answer all prompts under vLLM's check for host synchronisation, by engine.

    "armed" and "notices" as `WorkerProbe.probe_sync_check` tells; "synchronises" is
    None, or the end of the log of an engine that was stopped by the check.
    """
    options = {PLAIN: arguments(model, "bfloat16", None, True, setup)}
    for attention in attentions:
        options[attention] = arguments(model, "bfloat16", attention, True, setup)
    for name, medusa in _ENGINES.items():
        options[name] = arguments(model, "bfloat16", "auto", True, setup, **medusa)
    environment = {**setup.environment, "VLLM_GPU_SYNC_CHECK": "error"}
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        engines, refused = start(stack, options, environment)
        found |= {name: {"refused": reason} for name, reason in refused.items()}
        for name, engine in engines.items():
            found[name] = {**engine.call("sync_check"), "synchronises": None}
            try:
                ways = list(SAMPLING.values())
                if name != PLAIN:
                    ways.append(_TYPICAL)
                for sampling in ways:
                    engine.call(
                        "answer",
                        prompts=PROMPTS,
                        max_tokens=max_tokens,
                        sampling=sampling,
                    )
            except EngineError as error:
                found[name]["synchronises"] = str(error)
    return found
