# SPDX-License-Identifier: Apache-2.0
"""What takes one rank's memory, with and without Medusa, and the KV cache left."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_medusa.config import MedusaConfig
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.planning.base_model import DTYPE_BYTES, BaseModel
from vllm_medusa.planning.gpus import GIB, Device
from vllm_medusa.planning.heads import (
    TOKEN_ID_BYTES,
    TreeBounds,
    attention_bytes,
    buffer_bytes,
    rank_heads,
)
from vllm_medusa.planning.weights import kv_heads_per_rank, rank_weights

# vllm.v1.worker.gpu.spec_decode.rejection_sampler.MAX_CHUNK_BYTES: logits that are
# processed in float32 at a time where rows are verified.
_CHUNK_BYTES = 1 << 30
_KV_BYTES = {"float16": 2, "bfloat16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
KV_CACHE_DTYPES = ("auto", *_KV_BYTES)


@dataclass(frozen=True)
class Settings:
    """How the engine is to be started; the names are those of vLLM's options.

    Attributes:
        tensor_parallel_size: ranks.
        dtype: of weights and activations.
        quantization: of attention and MLP, or None; see `rank_weights`.
        kv_cache_dtype: one of `KV_CACHE_DTYPES`.
        max_model_len: tokens of the longest request.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: rows of the largest step.
        gpu_memory_utilization: share of the memory that the engine may take.
        kv_cache_memory_bytes: of the KV cache, instead of what is left; or None.
        block_size: tokens of a KV block.
        reserve_bytes: for what no formula gives: CUDA context, libraries, CUDA graphs.
    """

    tensor_parallel_size: int
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    block_size: int
    reserve_bytes: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of a number in the KV cache."""
        return _KV_BYTES.get(self.kv_cache_dtype, DTYPE_BYTES[self.dtype])


@dataclass(frozen=True)
class Heads:
    """The heads of a plan: what they are, how they are used, and the tree's bounds."""

    config: MedusaConfig
    spec: HeadsSpec
    tree: TreeBounds


@dataclass(frozen=True)
class KVCache:
    """The KV cache of one rank.

    Attributes:
        bytes_per_token: keys and values of all layers.
        num_bytes: left for it; None if the memory isn't known.
        num_blocks: whole blocks in it, as vLLM counts them.
        num_tokens: tokens in these.
        max_concurrency: requests of `max_model_len` tokens in it, as vLLM logs it.
        fits: whether one such request fits, which vLLM demands.
    """

    bytes_per_token: int
    num_bytes: int | None
    num_blocks: int
    num_tokens: int
    max_concurrency: float
    fits: bool


@dataclass(frozen=True)
class MemoryPlan:
    """One rank's memory in bytes, by what takes it, and the KV cache that is left.

    `exact` is what follows from shapes alone, `estimated` what doesn't.
    """

    exact: dict[str, int]
    estimated: dict[str, int]
    budget: int | None
    kv_cache: KVCache


def plan_memory(
    base: BaseModel, heads: Heads | None, device: Device, settings: Settings
) -> MemoryPlan:
    """The memory of each rank, plain if `heads` is None.

    Raises:
        ConfigError: the model can't be split over so many ranks.
        UnsupportedError: the model has tensors that a plan doesn't cover.
    """
    ranks = settings.tensor_parallel_size
    weights = rank_weights(base, ranks, settings.dtype, settings.quantization)
    exact = dict(weights.by_kind)
    estimated = {}
    on_gpu = device.bandwidth is not None
    if heads is not None:
        spec, bounds = heads.spec, heads.tree
        placed = rank_heads(spec, base, ranks, settings.dtype)
        exact["heads_blocks"] = placed.blocks
        exact["heads_projections"] = placed.projections + placed.token_ids
        buffers = buffer_bytes(
            heads.config, spec, base, bounds, settings.max_num_seqs, settings.dtype
        )
        exact["draft_probs"] = buffers.pop("draft_probs")
        exact["tree_buffers"] = sum(buffers.values())
        if ranks > 1:
            # Where each draft token stands among what the ranks gather, and its id.
            vocab = spec.draft_vocab_size or base.vocab_size
            exact["tree_buffers"] += 2 * TOKEN_ID_BYTES * vocab
        if on_gpu:
            estimated["tree_attention"] = attention_bytes(
                heads.config, base, bounds, settings.max_num_seqs, device.processors
            )
    estimated["activations"] = activation_bytes(base, heads, settings)
    estimated["reserve"] = settings.reserve_bytes
    budget = None
    if device.memory_bytes is not None:
        # As vllm.v1.worker.utils.request_memory rounds it.
        budget = math.ceil(device.memory_bytes * settings.gpu_memory_utilization)
    left = settings.kv_cache_memory_bytes
    if left is None and budget is not None:
        left = budget - sum(exact.values()) - sum(estimated.values())
    return MemoryPlan(exact, estimated, budget, plan_kv_cache(base, settings, left))


def plan_kv_cache(base: BaseModel, settings: Settings, left: int | None) -> KVCache:
    """Divide `left` bytes into blocks, as `get_kv_cache_config_from_groups` of vLLM's
    `kv_cache_utils` does for layers that are all alike."""
    per_token = kv_bytes_per_token(base, settings)
    block = per_token * settings.block_size
    num_blocks = max(0, left or 0) // block
    per_request = -(-settings.max_model_len // settings.block_size)
    return KVCache(
        bytes_per_token=per_token,
        num_bytes=left,
        num_blocks=num_blocks,
        num_tokens=num_blocks * settings.block_size,
        max_concurrency=num_blocks / per_request,
        fits=left is None or num_blocks >= per_request,
    )


def kv_bytes_per_token(base: BaseModel, settings: Settings) -> int:
    """Bytes of one token's keys and values of all layers, on each rank."""
    heads = kv_heads_per_rank(base, settings.tensor_parallel_size)
    return 2 * base.num_layers * heads * base.head_size * settings.kv_bytes


def activation_bytes(base: BaseModel, heads: Heads | None, settings: Settings) -> int:
    """Largest of three moments of a step, an estimate.

    - The model: hidden states and residual, and the widest layer's inputs and outputs,
      for `max_num_batched_tokens` rows.
    - Sampling: logits of every request's rows, and a copy in float32; with a tree
      1 + nodes rows a request, of which at most 1 GiB is in float32 at a time.
    - The heads: their logits for every request.
    """
    size = DTYPE_BYTES[settings.dtype]
    ranks = settings.tensor_parallel_size
    rows = settings.max_num_batched_tokens
    queries = base.num_heads * base.head_size // ranks
    keys = kv_heads_per_rank(base, ranks) * base.head_size
    widest = max(3 * base.intermediate_size // ranks, 2 * queries + 2 * keys)
    model = rows * (2 * base.hidden_size + widest) * size
    if heads is None:
        return max(model, settings.max_num_seqs * base.vocab_size * (size + 4))
    verified = min(rows, settings.max_num_seqs * (1 + heads.tree.num_nodes))
    logits = verified * base.vocab_size
    sampling = logits * size + min(4 * logits, _CHUNK_BYTES)
    spec = heads.spec
    vocab = -(-(spec.draft_vocab_size or base.vocab_size) // ranks)
    guesses = settings.max_num_seqs * spec.num_heads * vocab * size
    return max(model, sampling, guesses)


def default_reserve(device: Device, ranks: int) -> int:
    """Allowance for what no formula gives, an assumption: 1 GiB for the CUDA context
    and libraries, 1 for CUDA graphs, 1 for the communication of several ranks."""
    if device.bandwidth is None:
        return 0
    return (3 if ranks > 1 else 2) * GIB
