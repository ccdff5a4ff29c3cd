# SPDX-License-Identifier: Apache-2.0
"""What a plan is asked for, read from options and resolved to models and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_medusa.config import MedusaConfig
from vllm_medusa.config_text import PREFIX
from vllm_medusa.errors import ConfigError, TreeError
from vllm_medusa.planning.base_model import BaseModel
from vllm_medusa.planning.find_base import find_base
from vllm_medusa.planning.gpus import GIB, Device, find_device, read_machine
from vllm_medusa.planning.heads import TreeBounds, find_heads
from vllm_medusa.planning.memory import Heads, Settings, default_reserve
from vllm_medusa.planning.speedup import Expectation, expect_tokens
from vllm_medusa.planning.steps import Efficiency
from vllm_medusa.tree import BeamTree, TokenTree, load_accuracies, optimal, parse_tree
from vllm_medusa.tree.accuracies import Accuracies
from vllm_medusa.tree.builders import chain, optimal_up_to, prior_accuracies
from vllm_medusa.tree.resolve import (
    MAX_DEFAULT_NODES,
    accuracies_beside,
    resolve_tree,
)

_GPU_BLOCK, _CPU_BLOCK = 16, 128
_PRIOR_RANKS = 10


@dataclass(frozen=True)
class Options:
    """The options of `vllm-medusa plan`; None where the default depends on others."""

    base: str
    heads: str
    revision: str | None = None
    gpu: str = "H100"
    machine: Path | None = None
    tp: int = 1
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    block_size: int | None = None
    reserve_gib: float | None = None
    nodes: int | None = None
    accuracies: Path | None = None
    tokens_per_step: float | None = None
    context: int = 1024
    batch_sizes: tuple[int, ...] | None = None
    bandwidth_efficiency: float = Efficiency.bandwidth
    compute_efficiency: float = Efficiency.compute


@dataclass(frozen=True)
class Request:
    """Everything a plan is worked out from."""

    base: BaseModel
    heads: Heads
    tree: TokenTree
    expectation: Expectation | None
    device: Device
    settings: Settings
    efficiency: Efficiency
    context: int
    batch_sizes: tuple[int, ...] | None
    notes: tuple[str, ...]


def resolve(options: Options) -> Request:
    """Find the models, the tree and the device.

    Raises:
        MedusaError: an option is impossible, a model can't be found or not be planned.
    """
    _check(options)
    device = find_device(options.gpu)
    if options.machine is not None:
        device = read_machine(options.machine)
    base = find_base(options.base, options.revision)
    config = _config(options)
    spec, folder = find_heads(config, base)
    accuracies = _accuracies(options, folder)
    tree, notes = _tree(options, config, spec.num_heads, folder, accuracies)
    beam = BeamTree.parse(config.tree)
    bounds = TreeBounds(
        tree.num_nodes, beam.depth if beam else tree.max_depth, beam is None
    )
    if beam is not None and accuracies is not None:
        notes.append(
            "a beam is another tree in every step: accuracies give tokens per step for "
            "one tree of this size only, the one that suits middling heads"
        )
    if base.sliding_window is not None:
        notes.append(
            f"{base.name} has a sliding window: the KV cache is counted as if every "
            "layer kept the whole text, so requests need no more than this"
        )
    return Request(
        base=base,
        heads=Heads(config, spec, bounds),
        tree=tree,
        expectation=expect_tokens(
            tree,
            accuracies,
            options.tokens_per_step,
            spec.num_heads,
            has_own_tree=config.tree is not None or options.nodes is not None,
        ),
        device=device,
        settings=_settings(options, base, device),
        efficiency=Efficiency(options.bandwidth_efficiency, options.compute_efficiency),
        context=options.context,
        batch_sizes=options.batch_sizes,
        notes=tuple(notes),
    )


def _check(options: Options) -> None:
    for name in (
        "tp",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "kv_cache_memory_bytes",
        "block_size",
        "nodes",
        "context",
    ):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{_option(name)} is {value}: it must be at least 1")
    for name in (
        "gpu_memory_utilization",
        "bandwidth_efficiency",
        "compute_efficiency",
    ):
        value = getattr(options, name)
        if not 0 < value <= 1:
            raise ConfigError(
                f"{_option(name)} is {value}: it must be more than 0 and at most 1"
            )
    if options.batch_sizes is not None and min(options.batch_sizes) < 1:
        raise ConfigError(f"--batch-sizes must be at least 1: {options.batch_sizes}")
    if options.tokens_per_step is not None and not 1 <= options.tokens_per_step <= 1025:
        raise ConfigError(
            f"--tokens-per-step is {options.tokens_per_step}: a step gives at least 1 "
            "token, and at most one more than the tree has nodes"
        )
    if options.reserve_gib is not None and not 0 <= options.reserve_gib < 1 << 20:
        raise ConfigError(
            f"--reserve-gib is {options.reserve_gib}: it must be 0 or more"
        )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _config(options: Options) -> MedusaConfig:
    if options.heads.startswith(PREFIX):
        config = MedusaConfig.parse(options.heads)
    else:
        config = MedusaConfig(heads=options.heads)
    if options.nodes is not None and config.tree is not None:
        # Validated anew: the tree may have fewer nodes.
        fields = config.as_dict() | {"num_speculative_tokens": options.nodes}
        config = MedusaConfig(**fields)
    return config


def _accuracies(options: Options, folder: Path | None) -> Accuracies | None:
    if options.accuracies is not None:
        return load_accuracies(options.accuracies)
    return None if folder is None else accuracies_beside(folder)


def _tree(
    options: Options,
    config: MedusaConfig,
    num_heads: int,
    folder: Path | None,
    accuracies: Accuracies | None,
) -> tuple[TokenTree, list[str]]:
    if options.nodes is not None and config.tree is None:
        table = accuracies
        notes = []
        if table is None:
            table = prior_accuracies(num_heads, _PRIOR_RANKS)
            notes.append(
                "no accuracies of these heads are known: the tree has the form that "
                "suits middling ones"
            )
        return optimal(table[:num_heads], options.nodes), notes
    if folder is not None and options.accuracies is None:
        return resolve_tree(config, folder, num_heads), []
    if config.tree is not None:
        tree = parse_tree(config.tree, num_heads=num_heads, accuracies=accuracies)
    elif accuracies is not None:
        tree = optimal_up_to(accuracies[:num_heads], MAX_DEFAULT_NODES)
    else:
        tree = chain(num_heads)
    limit = config.num_speculative_tokens
    if limit is not None and limit > tree.num_nodes:
        raise TreeError(
            f"the tree has {tree.num_nodes} nodes, not {limit}: ask for less"
        )
    return tree if limit is None else tree.truncate(limit), []


def _settings(options: Options, base: BaseModel, device: Device) -> Settings:
    dtype = options.dtype
    if dtype == "auto":
        # vLLM runs models stored in float32 in 16 bits unless told otherwise.
        dtype = base.dtype if base.dtype in ("bfloat16", "float16") else "bfloat16"
    quantization = options.quantization or base.quantization
    reserve = default_reserve(device, options.tp)
    if options.reserve_gib is not None:
        reserve = int(options.reserve_gib * GIB)
    is_gpu = device.bandwidth is not None
    return Settings(
        tensor_parallel_size=options.tp,
        dtype=dtype,
        quantization=None if quantization == "none" else quantization,
        kv_cache_dtype=options.kv_cache_dtype,
        max_model_len=options.max_model_len or base.max_model_len,
        max_num_seqs=options.max_num_seqs or device.default_max_num_seqs,
        max_num_batched_tokens=(
            options.max_num_batched_tokens or device.default_max_num_batched_tokens
        ),
        gpu_memory_utilization=options.gpu_memory_utilization,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        block_size=options.block_size or (_GPU_BLOCK if is_gpu else _CPU_BLOCK),
        reserve_bytes=reserve,
    )
