# SPDX-License-Identifier: Apache-2.0
"""The whole plan as plain data: memory, KV cache, step cost, and what to change."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from vllm_medusa.planning.heads import spec_facts
from vllm_medusa.planning.memory import MemoryPlan, Settings, plan_memory
from vllm_medusa.planning.request import Request
from vllm_medusa.planning.speedup import step_table
from vllm_medusa.planning.steps import REDUCE_LATENCY, Roofline, missing_figure
from vllm_medusa.planning.weights import can_split

_MOST_REQUESTS = 256
_RANKS = (1, 2, 4, 8, 16)
_FEWER_TOKENS = 8192
_FEWER_REQUESTS = (256, 128, 64, 32)


def make_plan(request: Request) -> dict[str, Any]:
    """Work the plan out, ready for JSON; memory in bytes for each rank.

    Raises:
        MedusaError: the model can't be split so, or not be planned.
    """
    base, device, settings = request.base, request.device, request.settings
    plain = plan_memory(base, None, device, settings)
    medusa = plan_memory(base, request.heads, device, settings)
    sizes = {key: value for key, value in vars(base).items() if key != "shapes"}
    return {
        "base": sizes | {"num_parameters": _num_parameters(request)},
        "heads": {"heads": request.heads.config.heads} | spec_facts(request.heads.spec),
        "tree": asdict(request.heads.tree),
        "device": asdict(device),
        "settings": asdict(settings),
        "memory": {"plain": _memory(plain), "medusa": _memory(medusa)},
        "fits": medusa.kv_cache.fits,
        "advice": [] if medusa.kv_cache.fits else _advice(request, medusa),
        "steps": _steps(request, medusa),
        "notes": list(request.notes),
    }


def _num_parameters(request: Request) -> int:
    total = 0
    for name, shape in request.base.shapes.items():
        if name == "lm_head.weight" and request.base.is_tied:
            continue
        count = 1
        for length in shape:
            count *= length
        total += count
    return total


def _memory(plan: MemoryPlan) -> dict[str, Any]:
    return {
        "exact": plan.exact,
        "estimated": plan.estimated,
        "budget": plan.budget,
        "kv_cache": asdict(plan.kv_cache),
    }


def _steps(request: Request, memory: MemoryPlan) -> dict[str, Any]:
    device, settings = request.device, request.settings
    missing = missing_figure(device, settings)
    if missing is not None:
        return {"missing": f"{missing} is not known of {device.name}"}
    if not memory.kv_cache.fits:
        return {"missing": "it would not start"}
    roofline = Roofline(
        request.base,
        request.heads,
        device,
        settings,
        request.efficiency,
        request.context,
    )
    batch_sizes = request.batch_sizes or _batch_sizes(request, memory)
    rows, table = step_table(
        roofline, request.tree, request.expectation, sorted(set(batch_sizes))
    )
    return {
        "context": request.context,
        "efficiency": asdict(request.efficiency),
        "reduce_latency": REDUCE_LATENCY if settings.tensor_parallel_size > 1 else None,
        "expectation": request.expectation.source if request.expectation else None,
        "rows": rows,
        "table": table,
    }


def _batch_sizes(request: Request, memory: MemoryPlan) -> list[int]:
    """Powers of two that the engine can run at once at this context."""
    settings, nodes = request.settings, request.heads.tree.num_nodes
    most = min(
        _MOST_REQUESTS,
        settings.max_num_seqs,
        settings.max_num_batched_tokens // (1 + nodes),
    )
    if memory.kv_cache.num_bytes is not None:
        most = min(most, memory.kv_cache.num_tokens // (request.context + 1 + nodes))
    sizes = [1]
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    return sizes


def _advice(request: Request, memory: MemoryPlan) -> list[str]:
    """Changes each of which makes the plan fit; what else if none does."""
    base, settings = request.base, request.settings
    advice = []
    ranks = [
        n
        for n in _RANKS
        if n > settings.tensor_parallel_size
        and can_split(base, n)
        and _fits(request, replace(settings, tensor_parallel_size=n))
    ]
    if ranks:
        advice.append(f"--tp {ranks[0]}")
    if settings.dtype == "float32":
        if _fits(request, replace(settings, dtype="bfloat16")):
            advice.append("--dtype bfloat16")
    elif (
        settings.quantization is None
        and "fp8" in request.device.flops
        and _fits(request, replace(settings, quantization="fp8"))
    ):
        advice.append("--quantization fp8")
    tokens = memory.kv_cache.num_tokens
    if 0 < tokens < settings.max_model_len:
        advice.append(f"--max-model-len {tokens}")
    for number in _FEWER_REQUESTS:
        smaller = replace(settings, max_num_seqs=number)
        if number < settings.max_num_seqs and _fits(request, smaller):
            advice.append(f"--max-num-seqs {number}")
            break
    advice += _advice_on_heads(request)
    if plan_memory(base, None, request.device, settings).kv_cache.fits:
        advice.append("without Medusa it fits")
    return advice or ["a GPU with more memory, or a smaller model"]


def _advice_on_heads(request: Request) -> list[str]:
    advice = []
    heads = request.heads
    spec, tree = heads.spec, heads.tree
    for number in range(spec.num_heads - 1, 0, -1):
        shallow = replace(tree, depth=min(tree.depth, number))
        fewer = replace(heads, spec=replace(spec, num_heads=number), tree=shallow)
        if _fits(replace(request, heads=fewer), request.settings):
            advice.append(f"num_heads={number} of {spec.num_heads}")
            break
    vocab = spec.draft_vocab_size or request.base.vocab_size
    if vocab > _FEWER_TOKENS:
        fewer = replace(heads, spec=replace(spec, draft_vocab_size=_FEWER_TOKENS))
        if _fits(replace(request, heads=fewer), request.settings):
            how = "" if spec.draft_vocab_size else " (heads with a token_map)"
            advice.append(f"draft_vocab={_FEWER_TOKENS}{how}")
    return advice


def _fits(request: Request, settings: Settings) -> bool:
    plan = plan_memory(request.base, request.heads, request.device, settings)
    return plan.kv_cache.fits
