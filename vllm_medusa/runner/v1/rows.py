# SPDX-License-Identifier: Apache-2.0
"""The rows of a step's logits, each as if it were a request of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from vllm_medusa.attention.tree_batch import TreeBatch


class StepRows:
    """Which request each row of logits belongs to, and what its tree puts before it.

    A request without drafts has one row.

    Attributes:
        owners: [num_rows] int64, index of each row's request.
        first_rows: [num_reqs] int64, row of logits of each request's root.
        trees: of the step, None if there are none.
        tokens: [num_trees, width] int64, of the trees.
        paths: per row the tokens on its path, the root's, which is part of the
            request's output already, left out. See `follow_paths`.
        parents: per row the row of logits of its parent; the root's is itself. See
            `follow_paths`.
    """

    def __init__(
        self,
        # [num_reqs] int64
        num_drafts: torch.Tensor,
        trees: TreeBatch | None,
        # [num_trees, width] int64
        tokens: torch.Tensor | None,
    ) -> None:
        counts = num_drafts + 1
        self.owners = torch.repeat_interleave(counts)
        self.first_rows = counts.cumsum(0) - counts
        self.trees = trees
        self.tokens = tokens
        self.paths: list[list[int]] = []
        self.parents: list[int] = []

    def follow_paths(self) -> None:
        """Fill `paths` and `parents`; parents come before children."""
        num_rows = len(self.owners)
        self.paths = [[] for _ in range(num_rows)]
        self.parents = list(range(num_rows))
        if self.trees is None or self.tokens is None:
            return
        columns = zip(
            self.first_rows[self.trees.requests].tolist(),
            self.trees.num_rows_np.tolist(),
            self.trees.parents().tolist(),
            self.tokens.tolist(),
            strict=True,
        )
        for first, count, parents, tokens in columns:
            for row in range(1, count):
                parent = first + parents[row]
                self.parents[first + row] = parent
                self.paths[first + row] = [*self.paths[parent], tokens[row]]

    # [num_rows] lists of tokens
    def outputs(self, output_token_ids: Sequence[list[int]]) -> list[list[int]]:
        """Return what precedes each row after the prompt: its request's output, whose
        last token is the root, and its own path."""
        return [
            output_token_ids[owner] + path if path else output_token_ids[owner]
            for owner, path in zip(self.owners.tolist(), self.paths, strict=True)
        ]


def row_metadata(
    metadata: SamplingMetadata,
    # [num_rows] int64, request of each row
    owners: torch.Tensor,
    # by row
    generators: dict[int, torch.Generator],
) -> SamplingMetadata:
    """Return the metadata with one entry per row instead of one per request.

    For `Sampler.sample` where no request changes logits by its text: temperature,
    top-p, top-k and generators.
    """
    return replace(
        metadata,
        temperature=_at(metadata.temperature, owners),
        top_p=_at(metadata.top_p, owners),
        top_k=_at(metadata.top_k, owners),
        generators=generators,
        logitsprocs=LogitsProcessors(),
        spec_token_ids=None,
        thinking_budget_state_holder=None,
    )


def processing_metadata(
    metadata: SamplingMetadata,
    rows: StepRows,
    # by row
    generators: dict[int, torch.Generator],
    # [num_rows] lists of tokens
    outputs: list[list[int]],
    processors: LogitsProcessors,
    thinking_budgets: ThinkingBudgetStateHolder | None,
) -> SamplingMetadata:
    """As `row_metadata`, for `Sampler.apply_logits_processors` as well.

    `processors` and `thinking_budgets` must know the rows as their requests.
    """
    owners, words = rows.owners, metadata.bad_words_token_ids
    result = replace(
        row_metadata(metadata, owners, generators),
        output_token_ids=outputs,
        allowed_token_ids_mask=_at(metadata.allowed_token_ids_mask, owners),
        bad_words_token_ids={
            row: words[owner]
            for row, owner in enumerate(owners.tolist() if words else ())
            if owner in words
        },
        logitsprocs=processors,
        thinking_budget_state_holder=thinking_budgets,
    )
    if metadata.no_penalties:
        return result
    return replace(
        result,
        prompt_token_ids=_at(metadata.prompt_token_ids, owners),
        frequency_penalties=metadata.frequency_penalties[owners],
        presence_penalties=metadata.presence_penalties[owners],
        repetition_penalties=metadata.repetition_penalties[owners],
    )


# [num_rows, vocab_size] float32
def target_logits(
    # [num_rows, vocab_size] float32, after `Sampler.apply_logits_processors`
    logits: torch.Tensor,
    metadata: SamplingMetadata,
) -> torch.Tensor:
    """Return the logits of the distribution that `Sampler.sample` draws from.

    Rows at temperature 0 keep their logits. `logits` is left as it is.
    """
    if metadata.temperature is None:
        return logits
    logits = Sampler.apply_temperature(
        logits.clone(), metadata.temperature, metadata.all_random
    )
    for processor in metadata.logitsprocs.argmax_invariant:
        logits = processor.apply(logits)
    return apply_top_k_top_p(logits, metadata.top_k, metadata.top_p)


def _at(values: torch.Tensor | None, owners: torch.Tensor) -> torch.Tensor | None:
    return None if values is None else values[owners]
