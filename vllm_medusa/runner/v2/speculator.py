# SPDX-License-Identifier: Apache-2.0
"""Drafts from the last accepted hidden states, where vLLM expects a speculator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from vllm_medusa import timing
from vllm_medusa.heads.draft_sampling import DraftSampling
from vllm_medusa.propose import MedusaProposer
from vllm_medusa.runner.v2.propose_graphs import ProposeGraphs
from vllm_medusa.runner.v2.request_states import TreeRequests
from vllm_medusa.runner.v2.step_trees import StepTrees
from vllm_medusa.runner.v2.tree_state import TreeState

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.states import RequestState

    from vllm_medusa.runner.v2.verifier import TreeVerifier


class MedusaSpeculator(BaseSpeculator):
    """Makes the drafts of all requests of a step in one call of the heads.

    Takes the arguments of `init_speculator`. The runner sets `verifier` when the
    model is loaded.

    Attributes:
        tree_state: the trees on the device.
        step_trees: which requests of the current step have one.
        requests: what their sampling parameters ask for; the runner adds them.
        draft_probs: [max_num_reqs + 1, depth, draft_vocab] float32 by request state,
            what the candidates were drawn from; None if they are the best ones. The
            last entry is for the padding of CUDA graphs.
    """

    # The runner asks every speculator for these.
    draft_logits: torch.Tensor | None = None
    supports_mm_inputs = False
    enable_adaptive_verification = False

    verifier: TreeVerifier
    draft_probs: torch.Tensor | None = None

    def __init__(
        self, vllm_config: VllmConfig, device: torch.device, req_states: RequestState
    ) -> None:
        self.vllm_config = vllm_config
        self.device = device
        self.proposer = MedusaProposer(vllm_config)
        max_num_reqs = vllm_config.scheduler_config.max_num_seqs
        self.tree_state = TreeState(
            self.proposer.tree,
            max_num_reqs,
            device,
            is_fixed=self.proposer.has_fixed_tree,
        )
        self.step_trees = StepTrees(self.tree_state)
        self.requests = TreeRequests(
            max_num_reqs, self.proposer.config.engine_acceptance
        )
        self._drafts = torch.zeros(
            max_num_reqs, self.proposer.tree.num_nodes, dtype=torch.int64, device=device
        )
        self._hidden = torch.zeros(
            max_num_reqs,
            vllm_config.model_config.get_hidden_size(),
            dtype=vllm_config.model_config.dtype,
            device=device,
        )
        # In batch order like the two above. Unused where the tree is fixed:
        num_by_request = 0 if self.tree_state.is_fixed else max_num_reqs
        self._parents = torch.zeros(
            num_by_request, self.tree_state.max_width, dtype=torch.int32, device=device
        )
        self._has_grammar = torch.zeros(num_by_request, dtype=torch.bool, device=device)
        # Unused where candidates are not drawn:
        num_drawn = max_num_reqs if self.proposer.is_sampling else 0
        self._temperature = torch.zeros(num_drawn, device=device)
        self._seeds, self._positions, self._states = torch.zeros(
            3, num_drawn, dtype=torch.int64, device=device
        )
        self._graphs: ProposeGraphs | None = None

    @property
    def num_buffer_bytes(self) -> int:
        """Memory on the device besides the heads' weights."""
        buffers = [
            self._drafts,
            self._hidden,
            self._parents,
            self._has_grammar,
            self._temperature,
            self._seeds,
            self._positions,
            self._states,
        ]
        if self.draft_probs is not None:
            buffers.append(self.draft_probs)
        return sum(buffer.nbytes for buffer in buffers) + self.tree_state.num_bytes

    def load_model(self, target_model: nn.Module) -> None:
        """Load the heads and bind them to the base model."""
        self.proposer.load_model(target_model)
        if self.proposer.is_sampling:
            self.draft_probs = torch.zeros(
                len(self._states) + 1,
                self.tree_state.max_depth,
                self.proposer.heads.vocab_size,
                device=self.device,
            )

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Prepare to capture the heads, if the model is captured at all."""
        if cudagraph_mode != CUDAGraphMode.NONE:
            self._graphs = ProposeGraphs(self.vllm_config, self.device)

    def capture(self) -> None:
        """Capture the heads for the batches and numbers of nodes that can occur."""
        if self._graphs is not None:
            self._graphs.capture(self._run)

    def release_graphs(self) -> None:
        """Drop the captured heads; `init_cudagraph_manager` makes room for new ones."""
        self._graphs = None

    def propose(
        self,
        input_batch: InputBatch,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, torch.Tensor],
        # [num_tokens, hidden_size], after the final norm
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        # [num_reqs]
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        next_prefill_tokens: torch.Tensor,
        temperature: torch.Tensor,
        # [max_num_reqs] int64 by request state
        seeds: torch.Tensor,
        dummy_run: bool = False,
        num_speculative_tokens: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return [num_reqs, max_nodes] int64, of which the next step verifies the
        first `num_speculative_tokens`; the others are left as they are."""
        # The step's trees have been verified. Metadata that is built outside of steps,
        # as for a piecewise graph, must not find them.
        self.step_trees.clear()
        num_reqs = input_batch.num_reqs
        drafts = self._drafts[:num_reqs]
        num_nodes = drafts.shape[1]
        if num_speculative_tokens is not None:
            num_nodes = num_speculative_tokens
        if num_nodes == 0:
            return drafts
        with timing.measure("propose"):
            rows = (
                input_batch.logits_indices
                if dummy_run
                else self.verifier.last_rows(input_batch)
            )
            torch.index_select(last_hidden_states, 0, rows, out=self._hidden[:num_reqs])
            self._gather_requests(input_batch, rows, seeds, dummy_run)
            if self._graphs is None or not self._graphs.replay(num_reqs, num_nodes):
                self._run(num_reqs, num_nodes)
            if not self.tree_state.is_fixed and not dummy_run:
                self.tree_state.store(input_batch.idx_mapping, self._parents[:num_reqs])
        return drafts

    def _gather_requests(
        self,
        input_batch: InputBatch,
        # [num_reqs] int64, among the step's tokens the last accepted row
        rows: torch.Tensor,
        # [max_num_reqs] int64 by request state
        seeds: torch.Tensor,
        dummy_run: bool,
    ) -> None:
        """Bring what the proposer asks of requests into batch order."""
        num_reqs, states = input_batch.num_reqs, input_batch.idx_mapping
        if not self.tree_state.is_fixed:
            self._has_grammar[:num_reqs] = self.requests.has_grammar.gpu[states]
        if not self.proposer.is_sampling:
            return
        self._temperature[:num_reqs] = self.requests.draft_temperature.gpu[states]
        self._seeds[:num_reqs] = seeds[states]
        self._positions[:num_reqs] = input_batch.positions[rows] + 1
        # Neither a graph's padding nor a dummy run may write to a request's drafts.
        self._states.fill_(len(self._states))
        if not dummy_run:
            self._states[:num_reqs] = states

    def _run(self, num_reqs: int, num_nodes: int) -> None:
        """From the buffers in batch order to the drafts; capturable."""
        sampling = is_fixed = None
        if self.proposer.is_sampling:
            sampling = DraftSampling(
                self._temperature[:num_reqs],
                self._seeds[:num_reqs],
                self._positions[:num_reqs],
            )
        if not self.tree_state.is_fixed:
            is_fixed = self._has_grammar[:num_reqs]
        proposal = self.proposer.propose(
            self._hidden[:num_reqs], num_nodes, sampling, is_fixed
        )
        self._drafts[:num_reqs, :num_nodes] = proposal.tokens
        if proposal.parents is not None:
            self._parents[:num_reqs, : num_nodes + 1] = proposal.parents
        if proposal.probs is not None:
            assert self.draft_probs is not None
            self.draft_probs[:, : proposal.probs.shape[1]].index_copy_(
                0, self._states[:num_reqs], proposal.probs
            )
