# SPDX-License-Identifier: Apache-2.0
"""Steps of Model Runner V1 with random trees, for the tests of its parts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata

from vllm_medusa.attention.tree_batch import TreeBatch, TreeLayout
from vllm_medusa.runner.v1.rows import StepRows

VOCAB_SIZE = 24


class RandomStep:
    """Requests with outputs, and for some of them trees of their own.

    Attributes:
        num_drafts: per request.
        parents: per request the parent row of each row, the root's being 0.
        tokens: per request the token of each row; the root's ends its output.
        requests: as vLLM keeps them.
    """

    def __init__(self, rng: random.Random, num_reqs: int = 5, most: int = 6) -> None:
        self.num_drafts = [
            rng.choice([0, rng.randint(1, most)]) for _ in range(num_reqs)
        ]
        if not any(self.num_drafts):
            self.num_drafts[-1] = most
        self.parents = [
            [0, *(rng.randrange(row) for row in range(1, count + 1))]
            for count in self.num_drafts
        ]
        outputs = [
            [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 6))]
            for _ in range(num_reqs)
        ]
        self.tokens = [
            [output[-1], *(rng.randrange(VOCAB_SIZE) for _ in range(count))]
            for output, count in zip(outputs, self.num_drafts, strict=True)
        ]
        self.requests: list[Any] = [
            SimpleNamespace(
                req_id=f"request {index}",
                prompt_token_ids=[rng.randrange(VOCAB_SIZE) for _ in range(4)],
                output_token_ids=output,
                sampling_params=SamplingParams(),
            )
            for index, output in enumerate(outputs)
        ]

    def trees(self) -> TreeBatch:
        """The step's trees, each in a layout of its own."""
        indices = np.flatnonzero(self.num_drafts)
        num_rows = np.array(self.num_drafts)[indices] + 1
        starts = np.cumsum([0, *(np.array(self.num_drafts) + 1)])
        return TreeBatch(
            request_indices=indices,
            row_starts=starts[indices],
            bases_np=indices + 10,
            num_rows_np=num_rows,
            num_tokens=int(starts[-1]),
            layout=TreeLayout.of_parents(self._padded(self.parents)),
        )

    def rows(self) -> StepRows:
        """The rows of the step's logits."""
        return StepRows(
            torch.tensor(self.num_drafts), self.trees(), self._padded(self.tokens)
        )

    # [num_trees, width] int64
    def _padded(self, values: list[list[int]]) -> torch.Tensor:
        chosen = [v for v, count in zip(values, self.num_drafts, strict=True) if count]
        width = max(map(len, chosen))
        return torch.tensor([v + [0] * (width - len(v)) for v in chosen])

    def texts(self) -> list[list[int]]:
        """What precedes each row after the prompt, climbing from it to its root."""
        result = []
        for request, parents, tokens in zip(
            self.requests, self.parents, self.tokens, strict=True
        ):
            for row in range(len(parents)):
                path = []
                while row > 0:
                    path.append(tokens[row])
                    row = parents[row]
                result.append(request.output_token_ids + path[::-1])
        return result


def metadata(num_entries: int, **changes: Any) -> SamplingMetadata:
    """vLLM's metadata of requests that sample greedily and ask for nothing."""
    values: dict[str, Any] = {
        "temperature": None,
        "all_greedy": True,
        "all_random": False,
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": torch.zeros(num_entries),
        "presence_penalties": torch.zeros(num_entries),
        "repetition_penalties": torch.ones(num_entries),
        "output_token_ids": [],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
        **changes,
    }
    return SamplingMetadata(**values)
