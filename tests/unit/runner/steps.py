# SPDX-License-Identifier: Apache-2.0
"""Steps of requests with trees, and a sampler that reads paths as vLLM's does."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams

from tests.unit.kernels.trees import random_parents
from vllm_medusa import noise
from vllm_medusa.acceptance import Acceptance
from vllm_medusa.runner.v2.draw import RowSampler, StepRows
from vllm_medusa.runner.v2.request_states import TreeRequests
from vllm_medusa.runner.v2.schemes import SchemeVerifier
from vllm_medusa.runner.v2.step_verification import StepVerifier
from vllm_medusa.runner.v2.tree_state import TreeState
from vllm_medusa.tree import TokenTree

MAX_NUM_REQS, VOCAB_SIZE, DRAFT_VOCAB = 9, 8, 6
BASE = 20
CPU = torch.device("cpu")


def random_tree(rng: random.Random, width: int) -> TokenTree:
    parents = random_parents(rng, width)
    ranks = [parents[:row].count(parent) for row, parent in enumerate(parents)]
    return TokenTree((-1, *parents[1:]), (-1, *ranks[1:]))


# [num_rows] int64
def draw(
    logits: torch.Tensor,  # [num_rows, vocab_size]
    states: torch.Tensor,  # [num_rows] int64
    temperature: torch.Tensor,
    seeds: torch.Tensor,  # [max_num_reqs] int64
    positions: torch.Tensor,  # [num_rows] int64
    **options: Any,
) -> torch.Tensor:
    """In place of `gumbel_sample`: as there, noise of (seed, position, token)."""
    tokens = torch.arange(logits.shape[1])
    race = noise.exponential(
        noise.Stream.DRAFT, seeds[states][:, None], positions[:, None], tokens
    )
    return (logits.float() - race.log()).argmax(dim=1)


class HostTensor:
    """In place of `UvaBackedTensor`, which needs pinned memory."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.gpu = torch.zeros(size, dtype=dtype)
        self.np = self.gpu.numpy()

    def copy_to_uva(self) -> None:
        """Nothing to do: it is one memory."""


class PathSampler:
    """vLLM's sampler as far as `RowSampler` knows it; each token of a row's window has
    its logit lowered by the request's penalty."""

    use_fp64_gumbel = False
    logprobs_mode = "processed_logprobs"

    def __init__(self, penalties: list[float], max_depth: int) -> None:
        self.penalties = torch.tensor(penalties)
        self.max_depth = max_depth
        self.seeds = torch.arange(len(penalties)) * 7 + 3
        self.sampling_states = SimpleNamespace(
            temperature=SimpleNamespace(gpu=torch.ones(len(penalties))),
            seeds=SimpleNamespace(gpu=self.seeds),
        )
        self.calls: list[int] = []
        """Rows of each call."""
        self.given: list[torch.Tensor] = []
        self.made: list[torch.Tensor] = []

    def get_logprobs_dims(self, states: np.ndarray) -> tuple[int, int]:
        return 1, 0

    def apply_sampling_params(
        self,
        logits: torch.Tensor,
        states: torch.Tensor,
        idx_mapping: torch.Tensor,
        idx_mapping_np: np.ndarray,
        positions: torch.Tensor,
        tokens: torch.Tensor,
        local_pos: torch.Tensor,
        seq_lens: np.ndarray,
    ) -> torch.Tensor:
        num_rows = len(logits)
        assert (
            len(states) == len(positions) == len(tokens) == len(local_pos) == num_rows
        )
        assert len(idx_mapping) == len(idx_mapping_np) == len(seq_lens)
        self.calls.append(num_rows)
        self.given.append(logits)
        logits = logits.clone()
        self.made.append(logits)
        rows = torch.arange(num_rows)
        # Chains of unpenalised requests may be longer; what they read is not used.
        for back in range(self.max_depth):
            is_on_path = local_pos > back
            token = tokens[torch.where(is_on_path, rows - back, 0)].long()
            lowered = torch.where(
                is_on_path & (token >= 0), self.penalties[states], 0.0
            )
            logits.scatter_add_(1, token.clamp(min=0)[:, None], -lowered[:, None])
        return logits

    def sample(self, *arguments: Any, return_logprobs: bool) -> Any:
        assert return_logprobs
        processed = self.apply_sampling_params(*arguments)
        _, states, _, _, positions, *_ = arguments
        temperature = self.sampling_states.temperature.gpu
        return draw(processed, states, temperature, self.seeds, positions), processed


@dataclass(frozen=True)
class Step:
    """A step, what verifies it, and what a direct reading needs."""

    rows: StepRows
    verifier: StepVerifier
    sampler: PathSampler
    trees: list[TokenTree]
    """Of each request, cut to its rows."""
    acceptances: list[Acceptance]
    draft_probs: torch.Tensor
    draft_token_ids: torch.Tensor | None


def random_step(
    seed: int, schemes: tuple[str, ...], *, is_fixed: bool, mapped: bool = False
) -> Step:
    """Return a step of some requests; those without a tree are the last ones.

    Args:
        seed: same seed, same step.
        schemes: that occur, at random.
        is_fixed: all requests have the first rows of one tree.
        mapped: the draft vocabulary is not the whole one.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    num_reqs, width = rng.randint(1, 6), rng.randint(3, 10)
    whole = [random_tree(rng, width) for _ in range(1 if is_fixed else MAX_NUM_REQS)]
    bounds = max(whole, key=lambda tree: tree.max_depth)
    num_trees = rng.randint(1, num_reqs)
    num_rows = [rng.randint(2, width) for _ in range(num_trees)]
    num_rows += [1] * (num_reqs - num_trees)
    states = rng.sample(range(MAX_NUM_REQS), num_reqs)

    engine = Acceptance(scheme="rejection" if "rejection" in schemes else "exact")
    requests = TreeRequests(MAX_NUM_REQS, engine)
    penalties = [rng.choice([0.0, 1.5]) for _ in range(MAX_NUM_REQS)]
    acceptances = []
    for state in states:
        acceptance = Acceptance(
            scheme=rng.choice(schemes),
            epsilon=rng.choice([0.02, 0.2]),
            delta=rng.choice([None, 0.3]),
            first_token=rng.choice(["drawn", "greedy"]),
        )
        acceptances.append(acceptance)
        params = SamplingParams(
            presence_penalty=penalties[state],
            extra_args={
                "medusa_acceptance": acceptance.scheme,
                "medusa_epsilon": acceptance.epsilon,
                "medusa_delta": acceptance.delta,
                "medusa_first_token": acceptance.first_token,
            },
        )
        requests.add(state, params)

    trees = TreeState(bounds, MAX_NUM_REQS, CPU, is_fixed=is_fixed)
    if not is_fixed:
        parents = [[0, *tree.parents[1:]] for tree in whole]
        trees.store(torch.arange(MAX_NUM_REQS), torch.tensor(parents).int())
        trees.lay_out(torch.tensor(states))
    cut = [
        (whole[0] if is_fixed else whole[state]).truncate(count - 1)
        for state, count in zip(states, num_rows, strict=True)
    ]
    tokens: list[int] = []
    for tree in cut:
        # Siblings are distinct; a few drafts are placeholders.
        by_ordinal = rng.sample(range(DRAFT_VOCAB), DRAFT_VOCAB)
        of_tree = [by_ordinal[ordinal % DRAFT_VOCAB] for ordinal in tree.ordinals]
        tokens += [-1 if rng.random() < 0.05 else token for token in of_tree]
    logits = torch.randn(len(tokens), VOCAB_SIZE, generator=generator) * 2
    first = 0
    for tree in cut:
        for row, children in enumerate(tree.children):
            if children and rng.random() < 0.7:
                # The model agrees with one of the drafts.
                logits[first + row, tokens[first + rng.choice(children)]] += 5
        first += tree.num_nodes + 1
    draft_token_ids = None
    draft_vocab = VOCAB_SIZE
    if mapped:
        draft_vocab = DRAFT_VOCAB
        draft_token_ids = torch.randperm(VOCAB_SIZE, generator=generator)[:DRAFT_VOCAB]
    draft_probs = torch.rand(
        MAX_NUM_REQS + 1, bounds.max_depth, draft_vocab, generator=generator
    ).softmax(-1)

    batch = input_batch(states, num_rows)
    depths = torch.tensor([depth for tree in cut for depth in tree.depths])
    token_ids = torch.tensor(tokens, dtype=torch.int32)
    sampler = PathSampler(penalties, bounds.max_depth)
    row_sampler = RowSampler(sampler, trees, bounds, requests.reads_path, CPU)
    scheme_verifier = SchemeVerifier(
        sampler, trees, bounds, requests, draft_probs, draft_token_ids
    )
    return Step(
        StepRows(
            logits,
            token_ids,
            token_ids,
            BASE + 3 * batch.expanded_idx_mapping + depths,
            batch,
        ),
        StepVerifier(trees, requests, row_sampler, scheme_verifier),
        sampler,
        cut,
        acceptances,
        draft_probs,
        draft_token_ids,
    )


def input_batch(states: list[int], num_rows: list[int]) -> Any:
    """vLLM's batch of requests in these states."""
    ends = np.cumsum([0, *num_rows])
    counts = torch.tensor(num_rows)
    return SimpleNamespace(
        num_reqs=len(states),
        idx_mapping=torch.tensor(states),
        idx_mapping_np=np.array(states),
        expanded_idx_mapping=torch.tensor(states).repeat_interleave(counts),
        expanded_local_pos=torch.cat([torch.arange(n) for n in num_rows]).int(),
        num_draft_tokens_per_req=np.array(num_rows) - 1,
        cu_num_logits=torch.tensor(ends, dtype=torch.int32),
        cu_num_logits_np=ends,
        seq_lens_cpu_upper_bound=SimpleNamespace(
            numpy=lambda: np.full(len(states), 99)
        ),
    )


def with_candidates(step: Step, candidates: torch.Tensor) -> Step:
    """The same step where a grammar bars some drafts."""
    return replace(step, rows=replace(step.rows, candidates=candidates))
