# SPDX-License-Identifier: Apache-2.0
"""Logprobs of what a step's trees emit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores

from vllm_medusa.kernels.walk import Walk

if TYPE_CHECKING:
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.sample.sampler import Sampler


# [num_rows] int64
def emitted_at_rows(
    walk: Walk,
    # [num_rows] int64, for the rows that were not walked
    drawn: torch.Tensor,
    # [num_reqs] integer, the first row of each request
    first_rows: torch.Tensor,
) -> torch.Tensor:
    """Return the token that each walked row emitted; elsewhere what was drawn."""
    # Beyond its end a path repeats its last row, and here that row's token.
    last = walk.tokens.gather(1, walk.num_sampled[:, None].long() - 1)
    tokens = torch.where(walk.tokens < 0, last, walk.tokens)
    rows = first_rows[:, None] + walk.rows
    return drawn.index_put((rows.long(),), tokens)


def path_logprobs(
    sampler: Sampler,
    walk: Walk,
    # [num_rows] int64, the token to score at each row
    tokens: torch.Tensor,
    # [num_rows, vocab_size]
    scores: torch.Tensor,
    input_batch: InputBatch,
) -> LogprobsTensors | None:
    """Return logprobs of the walked rows, in the rows where vLLM looks for them:
    those of a request's i-th token in its i-th row."""
    dims = sampler.get_logprobs_dims(input_batch.idx_mapping_np)
    if dims is None:
        return None
    num_logprobs, max_per_req_token_ids = dims
    is_expanded = scores.shape[0] != input_batch.num_reqs
    # Of every row, so that only results change places: the logits of all rows may
    # fill what memory is left.
    of_rows = compute_topk_scores(
        scores,
        num_logprobs,
        tokens,
        input_batch.cu_num_logits_np.tolist() if is_expanded else None,
        logprob_token_ids_state=sampler.logprob_token_ids_state,
        expanded_idx_mapping=input_batch.expanded_idx_mapping,
        max_per_req_token_ids=max_per_req_token_ids,
        logits_mode=sampler.logprobs_mode in ("raw_logits", "processed_logits"),
    )
    first_rows = input_batch.cu_num_logits[:-1]
    row_ids = torch.arange(scores.shape[0], device=scores.device)
    requests = torch.searchsorted(first_rows, row_ids, right=True) - 1
    # Beyond the path any row will do: it is never read.
    step = input_batch.expanded_local_pos.long().clamp_max(walk.rows.shape[1] - 1)
    source = first_rows[requests] + walk.rows[requests, step]
    return of_rows._replace(
        logprob_token_ids=of_rows.logprob_token_ids[source],
        logprobs=of_rows.logprobs[source],
        selected_token_ranks=of_rows.selected_token_ranks[source],
    )
