# SPDX-License-Identifier: Apache-2.0
"""Thinking budgets on tree rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu_input_batch import CachedRequestState


class RowThinkingBudgets(ThinkingBudgetStateHolder):
    """vLLM's own thinking budgets, whose requests are the rows of a step.

    vLLM's state of a request depends on how many tokens each step has brought. Here it
    goes on by one token at a time down every path, as in plain decoding, and the
    request keeps the state of the last row that was accepted.
    """

    def __init__(self, vllm_config: VllmConfig, max_rows: int, device: torch.device):
        # Rows, not drafts: one row of logits per entry, as without speculation.
        super().__init__(vllm_config.reasoning_config, max_rows, 0, device, False)
        self._requests: dict[str, dict[str, Any]] = {}
        self._roots: dict[int, dict[str, Any]] = {}
        self._parents: Sequence[int] = ()

    def begin(
        self,
        # [num_rows] the row's request, and the row of its parent (the root's: itself)
        owners: Sequence[CachedRequestState],
        parents: Sequence[int],
    ) -> None:
        """Take up the rows of a step; `update_state` will bring them to their text."""
        self._parents = parents
        self._roots.clear()
        # What `update_state` fills in; `has_tracked_requests` counts it.
        self._state = dict[int, dict[str, Any]]()
        for row, (owner, parent) in enumerate(zip(owners, parents, strict=True)):
            params = owner.sampling_params
            if params is None or params.thinking_token_budget is None:
                continue
            self._state[row] = {}
            if row == parent:
                self._roots[row] = self._requests.get(
                    owner.req_id
                ) or self._init_state_entry(
                    owner.prompt_token_ids, params.thinking_token_budget
                )

    def update_state(
        self,
        output_token_ids: list[list[int]],
        spec_token_ids: list[list[int]] | None,
        repeat_indices: torch.Tensor | None = None,
    ) -> None:
        """As `ThinkingBudgetStateHolder.update_state`, from the roots down: each row
        starts from its parent's state and sees one token more."""
        waiting, states = list(self._state), dict[int, dict[str, Any]]()
        while waiting:
            # The rows of one depth.
            self._state = {
                row: dict(states.get(self._parents[row]) or self._roots[row])
                for row in waiting
                if row in self._roots or self._parents[row] in states
            }
            super().update_state(output_token_ids, None)
            states |= self._state
            waiting = [row for row in waiting if row not in states]
        self._state = states

    def commit(
        self,
        # by id of the request: row of its last accepted token
        last_rows: Mapping[str, int],
    ) -> None:
        """Let each request go on from the state of the row it has come to."""
        for req_id, row in last_rows.items():
            if row in self._state:
                self._requests[req_id] = self._state[row]

    def forget(self, req_ids: Collection[str]) -> None:
        """Drop requests that have ended."""
        for req_id in req_ids:
            self._requests.pop(req_id, None)
