# SPDX-License-Identifier: Apache-2.0
"""How long a decode step takes at least: a roofline, times an assumed efficiency.

Each part of a step is bound by what it reads or by what it computes. The figures of
the device are published peaks; kernels reach a share of them, which differs by shape
and can't be known without running. So this is an estimate for comparing settings. The
host's work, kernel launches and moved rows of the KV cache are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_medusa.planning.base_model import DTYPE_BYTES, BaseModel
from vllm_medusa.planning.gpus import Device
from vllm_medusa.planning.heads import rank_heads
from vllm_medusa.planning.memory import Heads, Settings, kv_bytes_per_token
from vllm_medusa.planning.weights import rank_weights

REDUCE_LATENCY = 8e-6
"""Seconds that one exchange between ranks takes however little it carries: assumed, the
order of magnitude of NVLink with a custom kernel."""


@dataclass(frozen=True)
class Efficiency:
    """Shares of the published peaks that kernels are assumed to reach."""

    bandwidth: float = 0.8
    compute: float = 0.6


@dataclass(frozen=True)
class StepCost:
    """Seconds of the parts of one decode step on one rank."""

    layers: float
    attention: float
    lm_head: float
    sampling: float
    communication: float
    heads: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(vars(self).values())


class Roofline:
    """Decode steps of one model on one device.

    Args:
        base: the model.
        heads: None for a plain engine.
        device: it must have a bandwidth and the speed of `settings.dtype`.
        settings: of the engine.
        efficiency: see `Efficiency`.
        context: tokens that each request has in the KV cache.
    """

    def __init__(
        self,
        base: BaseModel,
        heads: Heads | None,
        device: Device,
        settings: Settings,
        efficiency: Efficiency,
        context: int,
    ) -> None:
        self._base, self._heads, self._settings = base, heads, settings
        self._context = context
        ranks = settings.tensor_parallel_size
        self._weights = rank_weights(base, ranks, settings.dtype, settings.quantization)
        assert device.bandwidth is not None
        self._bandwidth = device.bandwidth * efficiency.bandwidth
        self._flops = device.flops[_kind(settings)] * efficiency.compute
        self._linear_flops = self._flops
        if settings.quantization == "fp8" and "fp8" in device.flops:
            self._linear_flops = device.flops["fp8"] * efficiency.compute
        self._link = (device.link or 0.0) * efficiency.bandwidth

    def step(self, requests: int, num_nodes: int = 0, depth: int = 0) -> StepCost:
        """A step of `requests` requests, each with a tree of `num_nodes` nodes and this
        depth; plain without nodes."""
        rows = requests * (1 + num_nodes)
        base, weights = self._base, self._weights
        ranks = self._settings.tensor_parallel_size
        size = DTYPE_BYTES[self._settings.dtype]
        kv_token = kv_bytes_per_token(base, self._settings)
        queries = base.num_layers * base.num_heads * base.head_size // ranks
        attention = self._bound(
            requests * self._context * kv_token + rows * kv_token,
            4.0 * rows * self._context * queries,
            self._flops,
        )
        lm_head = self._bound(
            weights.lm_head_bytes, 2.0 * rows * weights.lm_head_weights, self._flops
        )
        # Written once and read once as they are, and the same in float32.
        sampling = rows * base.vocab_size * 2 * (size + 4) / self._bandwidth
        return StepCost(
            layers=self._bound(
                weights.linear_bytes,
                2.0 * rows * weights.linear_weights,
                self._linear_flops,
            ),
            attention=attention,
            lm_head=lm_head,
            sampling=sampling,
            communication=self._communication(rows),
            heads=self._heads_step(requests, depth) if num_nodes else 0.0,
        )

    def _bound(self, read: float, operations: float, flops: float) -> float:
        return max(read / self._bandwidth, operations / flops)

    def _communication(self, rows: int) -> float:
        """Two sums a layer and one for the embedding, and the logits gathered."""
        base, ranks = self._base, self._settings.tensor_parallel_size
        if ranks == 1:
            return 0.0
        size = DTYPE_BYTES[self._settings.dtype]
        count = 2 * base.num_layers + 1
        share = (ranks - 1) / ranks
        carried = 2 * share * count * rows * base.hidden_size * size
        carried += share * rows * base.vocab_size * size
        return carried / self._link + (count + 1) * REDUCE_LATENCY

    def _heads_step(self, requests: int, depth: int) -> float:
        """The heads run once, for the last accepted row of each request, and only those
        that the tree reaches."""
        assert self._heads is not None
        settings = self._settings
        spec = replace(self._heads.spec, num_heads=depth)
        ranks = settings.tensor_parallel_size
        placed = rank_heads(spec, self._base, ranks, settings.dtype)
        seconds = self._bound(
            placed.read_bytes, 2.0 * requests * placed.weights, self._flops
        )
        guesses = requests * spec.num_heads * placed.vocab_rows
        seconds += guesses * 2 * DTYPE_BYTES[settings.dtype] / self._bandwidth
        # One exchange for each layer of blocks, one for the best guesses.
        exchanges = spec.num_layers + 1 if ranks > 1 else 0
        return seconds + exchanges * REDUCE_LATENCY


def missing_figure(device: Device, settings: Settings) -> str | None:
    """What the device lacks for a step cost, or None."""
    kind = _kind(settings)
    if device.bandwidth is None:
        return "memory bandwidth"
    if kind not in device.flops:
        return f"speed in {kind}"
    if settings.tensor_parallel_size > 1 and device.link is None:
        return "bandwidth to other ranks"
    return None


def _kind(settings: Settings) -> str:
    """The entry of `Device.flops` that a dtype computes by."""
    return "float32" if settings.dtype == "float32" else "bfloat16"
