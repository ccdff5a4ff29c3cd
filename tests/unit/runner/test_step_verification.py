# SPDX-License-Identifier: Apache-2.0
"""A step of requests with different schemes, trees and parameters, against verifying
each request alone, row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from vllm.utils.torch_utils import async_tensor_h2d

from tests.unit.runner.steps import HostTensor, Step, draw, random_step, with_candidates
from vllm_medusa.kernels.walk import walk_trees_reference
from vllm_medusa.runner.v2 import draw as draw_module
from vllm_medusa.runner.v2 import (
    padded_trees,
    path_windows,
    request_states,
    step_verification,
)
from vllm_medusa.runner.v2 import schemes as schemes_module
from vllm_medusa.tree import TokenTree
from vllm_medusa.verify import (
    Verification,
    row_statistics,
    verify_exact,
    verify_rejection,
    verify_typical,
)

ALL = ("exact", "typical", "rejection")


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes_module, "gumbel_sample", draw)
    monkeypatch.setattr(request_states, "UvaBackedTensor", HostTensor)


def path_tokens(row: int, tree: TokenTree, tokens: list[int]) -> list[int]:
    path = []
    while row > 0:
        path.append(tokens[row])
        row = tree.parents[row]
    return path


def alone(step: Step, request: int) -> tuple[Verification, torch.Tensor]:
    """Verify one request, with logits processed row by row."""
    rows, tree = step.rows, step.trees[request]
    acceptance = step.acceptances[request]
    state = int(rows.input_batch.idx_mapping[request])
    first = int(rows.input_batch.cu_num_logits[request])
    of_tree = slice(first, first + tree.num_nodes + 1)
    tokens, candidates = rows.tokens[of_tree].tolist(), rows.candidates[of_tree].long()
    processed = rows.logits[of_tree].clone()
    for row in range(len(tokens)):
        for token in path_tokens(row, tree, tokens):
            if token >= 0:
                processed[row, token] -= step.sampler.penalties[state]
    positions = rows.positions[of_tree]
    seeds = step.sampler.seeds
    states = torch.full_like(positions, state)
    drawn = draw(processed, states, torch.ones(()), seeds, positions)
    parents = torch.tensor([0, *tree.parents[1:]])
    depths = torch.tensor(tree.depths)
    num_rows = torch.tensor([len(tokens)])
    padded: tuple[Any, ...] = (parents[None], depths[None], num_rows)
    max_depth = step.sampler.max_depth
    scheme = acceptance.scheme if tree.num_nodes else "exact"
    if scheme == "exact":
        found = verify_exact(candidates[None], drawn[None], *padded, max_depth)
    elif scheme == "typical":
        if acceptance.first_token == "greedy":
            drawn = processed.argmax(-1)
        statistics = row_statistics(processed, candidates, parents)
        found = verify_typical(
            candidates[None],
            drawn[None],
            statistics.logprobs[None],
            statistics.entropies[None],
            *padded,
            torch.tensor([acceptance.epsilon]),
            torch.tensor([acceptance.delta or torch.inf]),
            max_depth,
        )
    else:
        found = verify_rejection(
            candidates[None],
            processed,
            torch.arange(len(tokens))[None],
            step.draft_probs[[state]],
            step.draft_token_ids,
            *padded,
            seeds[[state]],
            positions[:1],
            tree.max_children,
            max_depth,
        )
    return found, processed


def check(step: Step) -> int:
    """Compare with each request alone; return how many nodes are accepted."""
    verified = step.verifier.verify(step.rows)
    walk, accepted = verified.walk, 0
    starts = step.rows.input_batch.cu_num_logits.tolist()
    assert walk.rows.dtype == walk.num_sampled.dtype == torch.int32
    assert walk.tokens.dtype == torch.int64
    for request, start in enumerate(starts[:-1]):
        expected, processed = alone(step, request)
        assert torch.equal(walk.tokens[[request]], expected.tokens)
        assert torch.equal(walk.rows[[request]], expected.rows.int())
        num_sampled = int(walk.num_sampled[request])
        assert num_sampled == expected.num_accepted + 1
        accepted += num_sampled - 1
        walked = start + walk.rows[request, :num_sampled].long()
        emitted = walk.tokens[request, :num_sampled]
        assert torch.equal(verified.emitted[walked], emitted)
        assert verified.processed is not None
        of_request = verified.processed[start : starts[request + 1]]
        torch.testing.assert_close(of_request, processed)
    return accepted


@pytest.mark.parametrize("max_rows", [1 << 30, 9], ids=["one chunk", "chunks"])
@pytest.mark.parametrize(
    ("schemes", "options"),
    [
        (("exact",), {"is_fixed": True}),
        (("exact",), {"is_fixed": False}),
        (("typical",), {"is_fixed": True}),
        (("exact", "typical"), {"is_fixed": False}),
        (("rejection",), {"is_fixed": True}),
        (ALL, {"is_fixed": True}),
        (ALL, {"is_fixed": True, "mapped": True}),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_each_request_is_verified_as_if_alone(
    schemes: tuple[str, ...],
    options: dict[str, bool],
    max_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draw_module, "get_max_chunk_logits", lambda _: max_rows)
    steps = [random_step(seed, schemes, **options) for seed in range(30)]
    accepted = sum(map(check, steps))
    assert accepted > 40
    largest = max(max(step.sampler.calls) for step in steps)
    assert largest > 20 or max_rows == 9


def test_barred_drafts_are_not_accepted() -> None:
    """But what comes after them is processed with them on its path."""
    for seed in range(10):
        step = random_step(seed, ALL, is_fixed=True)
        barred = torch.where(
            torch.rand(len(step.rows.tokens)) < 0.3, -1, step.rows.tokens
        )
        check(with_candidates(step, barred.int()))


def test_requests_that_read_no_path_are_not_copied() -> None:
    """The sampler gets a view of the step's logits, of all requests at once."""
    for seed in range(10):
        step = random_step(seed, ("exact",), is_fixed=True)
        step.verifier._row_sampler._reads_path[:] = False
        verified = step.verifier.verify(step.rows)
        assert step.sampler.calls == [len(step.rows.tokens)]
        assert step.sampler.given[0].data_ptr() == step.rows.logits.data_ptr()
        assert verified.processed is step.sampler.made[0]


def without_values(step: Step, mode: FakeTensorMode) -> Step:
    """Replace every tensor that would be on the device by a fake one."""
    verifier, states = step.verifier, step.sampler.sampling_states
    for holder in (
        step.rows.input_batch,
        step.sampler,
        states.temperature,
        states.seeds,
        verifier._trees,
        verifier._row_sampler,
        verifier._schemes,
    ):
        for name, value in vars(holder).items():
            if isinstance(value, torch.Tensor):
                setattr(holder, name, mode.from_tensor(value))
    rows = {
        name: mode.from_tensor(getattr(step.rows, name))
        for name in ("logits", "tokens", "candidates", "positions")
    }
    return replace(step, rows=replace(step.rows, **rows))


@pytest.mark.parametrize("is_fixed", [True, False])
def test_no_value_is_read_on_the_host(
    is_fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors have none, see tests/unit/kernels/test_no_synchronisation.py."""
    mode = FakeTensorMode()

    def to_device(*arguments: Any, **options: Any) -> torch.Tensor:
        with unset_fake_temporarily():
            real = async_tensor_h2d(*arguments, **options)
        return mode.from_tensor(real)

    for module in (draw_module, padded_trees, path_windows, schemes_module):
        monkeypatch.setattr(module, "async_tensor_h2d", to_device)
    # A kernel reads nothing on the host, and the interpreter can't run it on fakes.
    monkeypatch.setattr(step_verification, "walk_trees", walk_trees_reference)
    schemes = ALL if is_fixed else ("exact", "typical")
    seen = set()
    for seed in range(8):
        step = random_step(seed, schemes, is_fixed=is_fixed, mapped=is_fixed)
        step = without_values(step, mode)
        with mode:
            verified = step.verifier.verify(step.rows)
            with pytest.raises(DataDependentOutputException):
                verified.walk.num_sampled[0].item()
        seen |= {acceptance.scheme for acceptance in step.acceptances}
    assert seen == set(schemes)
