# SPDX-License-Identifier: Apache-2.0
"""Adapter to Model Runner V1 (`vllm/v1/worker/gpu_model_runner.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.outputs import SamplerOutput
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vllm_medusa import timing
from vllm_medusa.attention.cpu import TreeCPUAttentionImpl, TreeCPUAttentionMetadata
from vllm_medusa.attention.cpu_cache import CpuRowStore
from vllm_medusa.attention.tree_batch import TreeBatch
from vllm_medusa.engine_config import medusa_config
from vllm_medusa.kv import move_rows, plan_moves
from vllm_medusa.propose import MedusaProposer, Proposal
from vllm_medusa.replace import replaced
from vllm_medusa.runner.report import MedusaReport
from vllm_medusa.runner.stats import MedusaStats
from vllm_medusa.runner.timed_steps import TimedSteps
from vllm_medusa.runner.v1.accept import StepVerifier
from vllm_medusa.runner.v1.drafts import Drafts, KeptDrafts, without_placeholders
from vllm_medusa.runner.v1.generators import unfinished_unseeded
from vllm_medusa.runner.v1.layouts import Layouts
from vllm_medusa.runner.v1.processors import ProcessorBuilder
from vllm_medusa.runner.v1.request_traits import (
    RequestTraits,
    TraitBook,
    draft_sampling,
)
from vllm_medusa.runner.v1.row_sampler import RowSampler
from vllm_medusa.runner.v1.rows import StepRows
from vllm_medusa.runner.v1.thinking import RowThinkingBudgets
from vllm_medusa.verify import PLACEHOLDER, Verification

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


class MedusaCPUModelRunner(MedusaReport, TimedSteps, CPUModelRunner):
    """vLLM's CPU runner, with token trees in place of draft chains.

    vLLM schedules, stores and counts a tree's nodes as if they were a chain of
    drafts. What differs is done here: positions by depth, the trees in the
    attention metadata, verification, the K/V move, and drafts from hidden states.
    """

    drafter: MedusaProposer

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        processors = ProcessorBuilder()
        with replaced(gpu_model_runner, "build_logitsprocs", processors):
            super().__init__(vllm_config, device)
        self.stats = MedusaStats()
        max_rows = self.max_num_reqs * (self.num_spec_tokens + 1)
        self._row_sampler = RowSampler(
            self.sampler,
            processors.rows,
            RowThinkingBudgets(vllm_config, max_rows, device)
            if vllm_config.reasoning_config is not None
            else None,
        )
        self._layouts = Layouts(self.drafter.tree, self.drafter.has_fixed_tree)
        self._traits = TraitBook(medusa_config(vllm_config).engine_acceptance)
        self._drafts = KeptDrafts()
        self._trees: TreeBatch | None = None
        # [num_trees], what verification has to know of them
        self._tree_drafts: list[Drafts] = []
        self._row_stores: list[CpuRowStore] = []
        # [num_reqs] int64, row of sample_hidden_states to draft from
        self._draft_rows = torch.empty(0, dtype=torch.int64)

    def initialize_kv_cache(
        self, kv_cache_config: KVCacheConfig, *args: Any, **kwargs: Any
    ) -> None:
        """As `CPUModelRunner.initialize_kv_cache`; refuses caches we can't read."""
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
        context = self.compilation_config.static_forward_context
        self._row_stores.clear()
        for group in kv_cache_config.kv_cache_groups:
            caches: dict[int, torch.Tensor] = {}
            for name in group.layer_names:
                layer = context[name]
                if isinstance(layer.impl, TreeCPUAttentionImpl):
                    layer.impl.check_support(layer, layer.kv_cache.shape[2])
                # Layers may share another layer's cache: its rows move once.
                caches.setdefault(layer.kv_cache.data_ptr(), layer.kv_cache)
            self._row_stores.append(CpuRowStore.of(list(caches.values())))

    def medusa_memory(self) -> dict[str, int]:
        """As `MedusaReport.medusa_memory`; nothing is kept besides the heads."""
        return {"heads": self.drafter.heads.num_bytes, "buffers": 0}

    def execute_model(
        self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any
    ) -> Any:
        """As `GPUModelRunner.execute_model`."""
        # A request that goes on with more of its prompt comes as a new one again.
        new = {request.req_id for request in scheduler_output.scheduled_new_reqs}
        for memory in (self._drafts, self._traits, self._row_sampler):
            memory.forget(scheduler_output.finished_req_ids | new)
        return super().execute_model(scheduler_output, *args, **kwargs)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """As `GPUModelRunner.sample_tokens`; unfinished prompts have no seed."""
        with unfinished_unseeded(self.input_batch, self.discard_request_mask.np):
            return super().sample_tokens(*args, **kwargs)

    def _prepare_inputs(
        self,
        scheduler_output: SchedulerOutput,
        # [num_reqs] int32
        num_scheduled_tokens: np.ndarray,
    ) -> Any:
        """After vLLM's own: the tree rows' positions follow their depth. Slots stay
        linear in the row: they were computed from the positions written before."""
        inputs = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        metadata = inputs[1]
        with timing.measure("prepare"):
            self._trees = self._make_trees(metadata, num_scheduled_tokens)
            if self._trees is not None:
                self.positions[self._trees.token_rows] = self._trees.positions()
        return inputs

    def _make_trees(
        self,
        metadata: SpecDecodeMetadata | None,
        # [num_reqs] int32
        num_scheduled_tokens: np.ndarray,
    ) -> TreeBatch | None:
        # Whatever the step does not verify is dropped by vLLM, too.
        drafts = self._drafts.take(self.input_batch.req_ids)
        if metadata is None or not any(metadata.num_draft_tokens):
            return None
        num_drafts = np.array(metadata.num_draft_tokens, dtype=np.int64)
        requests = num_drafts.nonzero()[0]
        num_rows = num_drafts[requests] + 1
        ends = self.query_start_loc.np[requests + 1].astype(np.int64)
        computed = self.input_batch.num_computed_tokens_cpu[requests].astype(np.int64)
        first_drafts = (num_drafts.cumsum() - num_drafts)[requests]
        self._tree_drafts = without_placeholders(
            [drafts[index] for index in requests],
            metadata.draft_token_ids[first_drafts].tolist(),
        )
        return TreeBatch(
            request_indices=requests,
            row_starts=ends - num_rows,
            bases_np=computed + num_scheduled_tokens[requests] - num_rows,
            num_rows_np=num_rows,
            num_tokens=int(num_scheduled_tokens.sum()),
            layout=self._layouts.of(num_rows, self._tree_drafts),
        )

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """As `GPUModelRunner._build_attention_metadata`; hands the trees on."""
        metadata, common = super()._build_attention_metadata(*args, **kwargs)
        if self._trees is not None and not self._trees.layout.is_chain:
            for group in metadata.values():
                assert isinstance(group, TreeCPUAttentionMetadata)
                group.trees = self._trees
        return metadata, common

    def _sample(
        self,
        # [num_rows, vocab_size]
        logits: torch.Tensor | None,
        spec_decode_metadata: SpecDecodeMetadata | None,
    ) -> SamplerOutput:
        """In place of the chain rejection sampler: draw at every row, walk, move."""
        traits = self._traits.look_up(self.input_batch.req_ids, self.requests)
        if logits is None or not (
            self._trees is not None or any(t.needs_rows for t in traits)
        ):
            # One row per request; vLLM's sampler alone.
            self._draft_rows = torch.arange(self.input_batch.num_reqs)
            return super()._sample(logits, None)
        num_drafts = [0] * len(traits)
        if spec_decode_metadata is not None:
            num_drafts = spec_decode_metadata.num_draft_tokens
        return self._sample_rows(logits, torch.tensor(num_drafts), traits)

    def _sample_rows(
        self,
        # [num_rows, vocab_size]
        logits: torch.Tensor,
        # [num_reqs] int64
        num_drafts: torch.Tensor,
        traits: list[RequestTraits],
    ) -> SamplerOutput:
        trees, metadata = self._trees, self.input_batch.sampling_metadata
        req_ids = self.input_batch.req_ids
        # [num_trees, width] int64
        tokens = self.input_ids.gpu[trees.token_rows].long() if trees else None
        rows = StepRows(num_drafts, trees, tokens)
        requests = [self.requests[req_id] for req_id in req_ids]
        with timing.measure("draw"):
            draws = self._row_sampler.draw(logits, metadata, rows, requests, traits)

        width = 1 if trees is None else trees.layout.max_depth + 1
        # [num_reqs, width] int64: the row that each token was taken from
        visited = rows.first_rows[:, None].repeat(1, width)
        # [num_reqs, width] int32
        sampled = torch.full(visited.shape, PLACEHOLDER, dtype=torch.int32)
        sampled[:, 0] = draws.tokens[rows.first_rows]
        if trees is not None and tokens is not None:
            with timing.measure("verify"):
                verification = StepVerifier(
                    trees,
                    tokens,
                    draws,
                    rows.first_rows[trees.requests, None] + trees.tree_rows,
                    [traits[index] for index in trees.request_indices],
                    self._tree_drafts,
                    self.drafter.heads,
                    self.drafter.tree.max_children[: trees.layout.max_depth],
                ).verify()
            self.stats.count(
                trees.num_trees,
                int(trees.num_rows_np.sum()) - trees.num_trees,
                int(verification.num_accepted.sum()),
            )
            with timing.measure("move"):
                self._commit(trees, verification)
            sampled[trees.requests] = verification.tokens.int()
            visited[trees.requests] += verification.rows
        self._draft_rows = visited[:, -1]
        self._row_sampler.commit(draws, req_ids, self._draft_rows.tolist())
        tensors = self._row_sampler.logprobs(draws, metadata, sampled, visited)
        return SamplerOutput(sampled_token_ids=sampled, logprobs_tensors=tensors)

    def _commit(self, trees: TreeBatch, verification: Verification) -> None:
        """Move the accepted rows' keys and values behind the prefix."""
        moves = plan_moves(verification, trees.bases)
        if moves is None:
            return
        self.stats.moved += len(moves.request)
        tables = self.input_batch.block_table.block_tables
        for store, table in zip(self._row_stores, tables, strict=True):
            move_rows(moves, store, table.block_table.gpu[trees.requests])

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        """The heads take hidden states, not positions: any input fits. vLLM cuts
        trees that would pass max_model_len, and a cut tree is a tree."""
        return common_attn_metadata is not None

    def propose_draft_token_ids(
        self,
        scheduler_output: SchedulerOutput,
        sampled_token_ids: list[list[int]],
        sampling_metadata: SamplingMetadata,
        # [num_tokens, hidden_size]
        hidden_states: torch.Tensor,
        # [num_rows, hidden_size]
        sample_hidden_states: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> list[list[int]]:
        """In place of vLLM's: drafts from the last accepted rows' hidden states."""
        num_nodes = scheduler_output.num_spec_tokens_to_schedule
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        requests = [index for index, tokens in enumerate(sampled_token_ids) if tokens]
        if num_nodes == 0 or not requests:
            return drafts
        with timing.measure("propose"):
            proposal = self._propose(requests, sample_hidden_states, num_nodes)
            for index, tokens in zip(requests, proposal.tokens.tolist(), strict=True):
                drafts[index] = tokens
        return drafts

    def _propose(
        self,
        # Indices in the batch
        requests: list[int],
        # [num_rows, hidden_size]
        hidden_states: torch.Tensor,
        num_nodes: int,
    ) -> Proposal:
        drafter, input_batch = self.drafter, self.input_batch
        req_ids = [input_batch.req_ids[index] for index in requests]
        traits = self._traits.look_up(req_ids, self.requests)
        sampling = is_fixed = None
        if drafter.is_sampling:
            # The root is the last token, and bookkeeping has counted it.
            lengths = input_batch.num_tokens_no_spec[requests].astype(np.int64)
            sampling = draft_sampling(traits, torch.from_numpy(lengths) - 1)
        if not drafter.has_fixed_tree:
            is_fixed = torch.tensor([t.has_grammar for t in traits])
        proposal = drafter.propose(
            hidden_states[self._draft_rows[requests]], num_nodes, sampling, is_fixed
        )
        self._drafts.keep(req_ids, proposal)
        return proposal
