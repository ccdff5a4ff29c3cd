# SPDX-License-Identifier: Apache-2.0
"""Adapter to Model Runner V1 (`vllm/v1/worker/gpu_model_runner.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vllm_medusa import timing
from vllm_medusa.attention.cpu import TreeCPUAttentionImpl, TreeCPUAttentionMetadata
from vllm_medusa.attention.cpu_cache import CpuRowStore
from vllm_medusa.attention.tree_batch import TreeBatch, TreeLayout
from vllm_medusa.kv import move_rows, plan_moves
from vllm_medusa.propose import MedusaProposer
from vllm_medusa.replace import replaced
from vllm_medusa.runner.report import MedusaReport
from vllm_medusa.runner.requests import MedusaStats, TreeEligibility
from vllm_medusa.runner.sampling import (
    build_logitsprocs,
    custom_processors,
    merge_plain,
    row_metadata,
    with_seeds,
)
from vllm_medusa.verify import Verification, verify_exact

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


class MedusaCPUModelRunner(MedusaReport, CPUModelRunner):
    """vLLM's CPU runner, with token trees in place of draft chains.

    vLLM schedules, stores and counts a tree's nodes as if they were a chain of
    drafts. What differs is done here: positions by depth, the trees in the
    attention metadata, verification, the K/V move, and drafts from hidden states.
    """

    drafter: MedusaProposer

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        with replaced(gpu_model_runner, "build_logitsprocs", build_logitsprocs):
            super().__init__(vllm_config, device)
        self.stats = MedusaStats()
        self.eligibility = TreeEligibility(
            self.stats, custom_processors(self.input_batch.logitsprocs)
        )
        self._layouts: dict[int, TreeLayout] = {}
        self._trees: TreeBatch | None = None
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
        self.eligibility.forget(scheduler_output.finished_req_ids)
        with timing.measure("step"):
            return super().execute_model(scheduler_output, *args, **kwargs)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """As `GPUModelRunner.sample_tokens`."""
        with timing.measure("step"):
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
        if metadata is None or not any(metadata.num_draft_tokens):
            return None
        num_drafts = np.array(metadata.num_draft_tokens, dtype=np.int64)
        requests = num_drafts.nonzero()[0]
        num_rows = num_drafts[requests] + 1
        ends = self.query_start_loc.np[requests + 1].astype(np.int64)
        computed = self.input_batch.num_computed_tokens_cpu[requests].astype(np.int64)
        return TreeBatch(
            request_indices=requests,
            row_starts=ends - num_rows,
            bases_np=computed + num_scheduled_tokens[requests] - num_rows,
            num_rows_np=num_rows,
            num_tokens=int(num_scheduled_tokens.sum()),
            layout=self._layout(int(num_rows.max())),
        )

    def _layout(self, num_rows: int) -> TreeLayout:
        """Return the layout of the tree's first `num_rows` rows, root included."""
        if num_rows not in self._layouts:
            tree = self.drafter.tree.truncate(num_rows - 1)
            self._layouts[num_rows] = TreeLayout.of(tree, self.device)
        return self._layouts[num_rows]

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
        metadata = self.input_batch.sampling_metadata
        if self._trees is None or spec_decode_metadata is None or logits is None:
            # One row per request; vLLM's sampler alone.
            self._draft_rows = torch.arange(self.input_batch.num_reqs)
            return super()._sample(logits, None)
        with timing.measure("verify"):
            return self._sample_trees(logits, spec_decode_metadata, metadata)

    def _sample_trees(
        self,
        # [num_rows, vocab_size]
        logits: torch.Tensor,
        spec_decode_metadata: SpecDecodeMetadata,
        metadata: SamplingMetadata,
    ) -> SamplerOutput:
        trees = self._trees
        assert trees is not None
        # [num_reqs] int64
        num_drafts = torch.tensor(spec_decode_metadata.num_draft_tokens)
        # [num_reqs] int64, each request's last row of logits
        last_rows = spec_decode_metadata.bonus_logits_indices.long()
        plain, drawn = self._draw(logits, num_drafts, last_rows, metadata)

        requests = trees.requests
        first_rows = (last_rows - num_drafts)[requests]
        # [num_trees, width] int64, rows of logits
        rows = first_rows[:, None] + trees.tree_rows
        layout = trees.layout
        verification = verify_exact(
            self.input_ids.gpu[trees.token_rows].long(),
            drawn[rows],
            layout.parents.expand(trees.num_trees, -1),
            layout.depths.expand(trees.num_trees, -1),
            trees.num_rows,
            layout.max_depth,
        )
        self._count(verification)
        with timing.measure("move"):
            self._commit(verification)

        # [num_reqs, max_depth + 1] int32
        sampled = torch.full(
            (len(num_drafts), layout.max_depth + 1), -1, dtype=torch.int32
        )
        sampled[:, 0] = drawn[last_rows]
        draft_rows = last_rows.clone()
        sampled[requests] = verification.tokens.int()
        draft_rows[requests] = first_rows + verification.last_rows
        self._draft_rows = draft_rows
        output = SamplerOutput(sampled_token_ids=sampled, logprobs_tensors=None)
        if plain is None:
            return output
        return merge_plain(output, plain, num_drafts == 0)

    # (vLLM's own output for requests without a tree, [num_rows] int64)
    def _draw(
        self,
        # [num_rows, vocab_size]
        logits: torch.Tensor,
        # [num_reqs] int64
        num_drafts: torch.Tensor,
        # [num_reqs] int64
        last_rows: torch.Tensor,
        metadata: SamplingMetadata,
    ) -> tuple[SamplerOutput | None, torch.Tensor]:
        """Draw at every row; requests that can't have a tree keep vLLM's sampler with
        all it can do. Each seeded request is drawn for once only."""
        plain, seeded = None, set(range(len(num_drafts)))
        if any(self._exclusion(i) for i in range(self.input_batch.num_reqs)):
            without_tree = set((num_drafts == 0).nonzero().flatten().tolist())
            seeded -= without_tree
            plain = self.sampler(
                logits=logits[last_rows],
                sampling_metadata=with_seeds(metadata, without_tree),
            )
        # [num_rows] int64, request of each row of logits
        owners = torch.repeat_interleave(num_drafts + 1)
        drawn, _ = self.sampler.sample(
            logits.to(torch.float32), row_metadata(with_seeds(metadata, seeded), owners)
        )
        return plain, drawn.long()

    def _commit(self, verification: Verification) -> None:
        """Move the accepted rows' keys and values behind the prefix."""
        trees = self._trees
        assert trees is not None
        moves = plan_moves(verification, trees.bases)
        if moves is None:
            return
        self.stats.moved += len(moves.request)
        tables = self.input_batch.block_table.block_tables
        for store, table in zip(self._row_stores, tables, strict=True):
            move_rows(moves, store, table.block_table.gpu[trees.requests])

    def _count(self, verification: Verification) -> None:
        trees = self._trees
        assert trees is not None
        self.stats.steps += 1
        self.stats.trees += trees.num_trees
        self.stats.nodes += int(trees.num_rows_np.sum()) - trees.num_trees
        self.stats.accepted += int(verification.num_accepted.sum())

    def _exclusion(self, index: int) -> str | None:
        req_id = self.input_batch.req_ids[index]
        return self.eligibility.reason(req_id, self.requests[req_id].sampling_params)

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
        if num_nodes == 0:
            return drafts
        requests = [
            index
            for index, tokens in enumerate(sampled_token_ids)
            if tokens and self._exclusion(index) is None
        ]
        if not requests:
            return drafts
        with timing.measure("propose"):
            rows = self._draft_rows[requests]
            proposal = self.drafter.propose(sample_hidden_states[rows], num_nodes)
            for index, tokens in zip(requests, proposal.tokens.tolist(), strict=True):
                drafts[index] = tokens
        return drafts
