# SPDX-License-Identifier: Apache-2.0
"""Adapter to Model Runner V2 (`vllm/v1/worker/gpu/model_runner.py`)."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.logger import init_logger
from vllm.v1.worker.cpu.model_runner import CPUModelRunner
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from vllm_medusa import timing
from vllm_medusa.attention.tree_layers import connect_layers
from vllm_medusa.kernels.move_rows import RowMover
from vllm_medusa.replace import replaced
from vllm_medusa.runner.report import MedusaReport
from vllm_medusa.runner.stats import MedusaStats
from vllm_medusa.runner.timed_steps import TimedSteps
from vllm_medusa.runner.v2.draw import RowSampler
from vllm_medusa.runner.v2.model_graphs import TreeGraphManager
from vllm_medusa.runner.v2.schemes import SchemeVerifier
from vllm_medusa.runner.v2.speculator import MedusaSpeculator
from vllm_medusa.runner.v2.step_verification import StepVerifier
from vllm_medusa.runner.v2.verifier import TreeVerifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.utils import AttentionGroup

logger = init_logger(__name__)


class MedusaModelRunner(MedusaReport, TimedSteps, GPUModelRunner):
    """vLLM's runner, with token trees in place of draft chains.

    vLLM schedules, stores and counts a tree's nodes as if they were a chain of
    drafts. What differs sits behind its own seams: the speculator, the rejection
    sampler, the attention metadata; and positions follow a row's depth.
    """

    speculator: MedusaSpeculator
    # [num_reqs] int32, rows of logits of each request in the step that begins
    _num_logits: np.ndarray | None = None

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        with replaced(model_runner, "init_speculator", MedusaSpeculator):
            super().__init__(vllm_config, device)
        self.stats = MedusaStats()
        self.step_trees = self.speculator.step_trees

    def load_medusa(self) -> None:
        """Load the heads and set the verifier, once the model is loaded."""
        self.speculator.load_model(self.model)
        assert self.sampler is not None
        proposer, requests = self.speculator.proposer, self.speculator.requests
        requests.bind(self.sampler)
        trees = self.step_trees.state
        row_sampler = RowSampler(
            self.sampler, trees, proposer.tree, requests.reads_path, self.device
        )
        schemes = SchemeVerifier(
            self.sampler,
            trees,
            proposer.tree,
            requests,
            self.speculator.draft_probs,
            proposer.heads.draft_token_ids,
        )
        self.verifier = TreeVerifier(
            self.sampler,
            self.step_trees,
            StepVerifier(trees, requests, row_sampler, schemes),
            self.device,
        )
        self.rejection_sampler = self.verifier
        self.speculator.verifier = self.verifier

    def initialize_kv_cache(
        self,
        kv_cache_config: KVCacheConfig,
        is_profiling: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As `GPUModelRunner.initialize_kv_cache`; connects the attention layers."""
        with replaced(model_runner, "ModelCudaGraphManager", TreeGraphManager):
            super().initialize_kv_cache(kv_cache_config, is_profiling, *args, **kwargs)
        fixed_ancestors = None
        if self.step_trees.state.is_fixed:
            fixed_ancestors = self.step_trees.state.ancestors(1)[0]
        self._attentions = connect_layers(
            self.vllm_config,
            (group for groups in self.attn_groups for group in groups),
            self.step_trees,
            self.speculator.proposer.config.attention,
            self.device,
            fixed_ancestors,
        )
        self.verifier.row_movers = self._row_movers()
        if not is_profiling:
            self._log_memory()

    def _row_movers(self) -> list[RowMover]:
        """Make what moves the rows of each attention group's layers."""
        layers = self.compilation_config.static_forward_context
        movers, moved = [], set[tuple[int, int]]()
        for group in (group for groups in self.attn_groups for group in groups):
            views = []
            for name in group.layer_names:
                keys, values = layers[name].impl.cache_views(layers[name].kv_cache)
                # Layers may share another layer's cache: to move its rows twice would
                # move what has just been written. KV cache groups may share memory,
                # too, but their blocks in it are others.
                cache = group.kv_cache_group_id, keys.data_ptr()
                if cache not in moved:
                    moved.add(cache)
                    views.append((keys, values))
            movers.append(RowMover(views))
        return movers

    def _log_memory(self) -> None:
        memory = self.medusa_memory()
        logger.info(
            "Medusa heads take %.1f MiB, buffers %.1f MiB; tree attention: %s",
            memory["heads"] / 2**20,
            memory["buffers"] / 2**20,
            ", ".join(self._attentions.names) or "PyTorch on the CPU",
        )

    def profile_cudagraph_memory(self) -> int:
        """As `GPUModelRunner.profile_cudagraph_memory`, which captures everything once
        for a KV cache of its own and drops it again."""
        try:
            return super().profile_cudagraph_memory()
        finally:
            self._release()
            gc.collect()
            torch.accelerator.empty_cache()

    def shutdown(self) -> None:
        """As `GPUModelRunner.shutdown`."""
        self._release()
        super().shutdown()

    def _release(self) -> None:
        """Let go of the KV cache and of captured graphs."""
        if isinstance(self.rejection_sampler, TreeVerifier):
            self.rejection_sampler.row_movers = ()
        if self.speculator is not None:
            self.speculator.release_graphs()

    def add_requests(self, scheduler_output: SchedulerOutput) -> None:
        """As `GPUModelRunner.add_requests`; notes what verification must know."""
        super().add_requests(scheduler_output)
        for request in scheduler_output.scheduled_new_reqs:
            if request.sampling_params is not None:
                index = self.req_states.req_id_to_index[request.req_id]
                self.speculator.requests.add(index, request.sampling_params)
        if scheduler_output.scheduled_new_reqs:
            self.speculator.requests.flush()

    def prepare_attn(
        self, input_batch: InputBatch
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """As `GPUModelRunner.prepare_attn`; then positions follow the depth.

        Slots stay linear in the row: they are computed before.
        """
        block_tables, slot_mappings = super().prepare_attn(input_batch)
        with timing.measure("prepare"):
            self.step_trees.begin(
                input_batch, kernel_block_tables(self.attn_groups, block_tables)
            )
        self._count(input_batch)
        self._num_logits = np.diff(input_batch.cu_num_logits_np)
        return block_tables, slot_mappings

    def _set_active_loras(
        self, prompt_lora_mapping: tuple[int, ...], *args: Any, **kwargs: Any
    ) -> None:
        """As `GPUModelRunner._set_active_loras`, of a step's requests with the adapter
        of each row of logits, where vLLM gives one for each request."""
        if self._num_logits is not None:
            rows = np.repeat(prompt_lora_mapping, self._num_logits)
            prompt_lora_mapping = tuple(rows.tolist())
            # Dummy steps, which come without `prepare_attn`, count rows themselves.
            self._num_logits = None
        super()._set_active_loras(prompt_lora_mapping, *args, **kwargs)

    def prepare_dummy_attn(self, *args: Any, **kwargs: Any) -> Any:
        """As `GPUModelRunner.prepare_dummy_attn`: a step without trees."""
        self.step_trees.clear()
        return super().prepare_dummy_attn(*args, **kwargs)

    def _count(self, input_batch: InputBatch) -> None:
        num_trees = self.step_trees.num_trees
        if num_trees == 0:
            return
        self.stats.steps += 1
        self.stats.trees += num_trees
        self.stats.nodes += input_batch.num_draft_tokens

    def medusa_stats(self) -> dict[str, Any]:
        """As `MedusaReport.medusa_stats`; waits for the device."""
        self.stats.accepted = int(self.verifier.num_accepted)
        self.stats.moved = int(self.verifier.num_moved)
        return super().medusa_stats()

    def reset_medusa_stats(self) -> None:
        """As `MedusaReport.reset_medusa_stats`."""
        super().reset_medusa_stats()
        self.verifier.reset_counters()

    def medusa_memory(self) -> dict[str, int]:
        """As `MedusaReport.medusa_memory`."""
        return {
            "heads": self.speculator.proposer.heads.num_bytes,
            "buffers": self.speculator.num_buffer_bytes + self._attentions.num_bytes,
        }


class MedusaCPUModelRunner(MedusaModelRunner, CPUModelRunner):
    """The same on a CPU, where V2 runs through Triton's interpreter."""


def kernel_block_tables(
    attn_groups: Sequence[Sequence[AttentionGroup]],
    # per KV cache group [num_reqs, max_blocks] int32
    block_tables: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """Return per attention group the block table of its layers' cache views.

    They differ from the KV cache group's where a backend takes smaller blocks than
    the scheduler hands out. vLLM then maps the table, into a buffer of the group, when
    it builds the metadata; it writes the same numbers again.
    """
    return tuple(
        group.map_to_kernel_block_table(block_tables[group.kv_cache_group_id])
        for groups in attn_groups
        for group in groups
    )
