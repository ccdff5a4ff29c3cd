# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_medusa.train.chunked_loss import (
    Teacher,
    chunked_cross_entropy,
    chunked_kl,
    chunked_loss,
    rows_per_chunk,
)

HEADS, ROWS, HIDDEN, VOCAB, CHUNK = 3, 23, 8, 50, 5
HARD = 0.3


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaf(*shape: int, seed: int) -> torch.Tensor:
    return random(*shape, seed=seed).requires_grad_()


TARGETS = torch.arange(HEADS * ROWS).view(HEADS, ROWS) * 7 % VOCAB
TARGETS[:, ::4] = -1
WEIGHTS = random(HEADS, ROWS, seed=4).abs()
CORRECTION = random(VOCAB, seed=5)
TEACHER = Teacher(
    random(ROWS + HEADS, HIDDEN, seed=6),
    random(VOCAB, HIDDEN, seed=7),
    torch.arange(ROWS) + torch.arange(HEADS)[:, None] + 1,
)


def plain_losses(
    states: torch.Tensor, weight: torch.Tensor, correction: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy to the target and KL to the teacher, [K, N] each."""
    log_p = torch.log_softmax(states @ weight.mT + correction, -1)
    hard = -log_p.gather(-1, TARGETS.clamp(min=0)[..., None])[..., 0]
    soft = torch.softmax(TEACHER.hidden @ TEACHER.weight.T + correction, -1)
    soft = soft[TEACHER.rows]
    return hard * (TARGETS >= 0), (soft * (soft.log() - log_p)).sum(-1)


@pytest.mark.parametrize("own", [False, True], ids=["one weight", "own weights"])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradients_of_many_heads(
    soft: bool, corrected: bool, own: bool
) -> None:
    states = leaf(HEADS, ROWS, HIDDEN, seed=1)
    weight = leaf(*([HEADS] if own else []), VOCAB, HIDDEN, seed=2)
    loss, losses = chunked_loss(
        states,
        weight,
        TARGETS,
        WEIGHTS,
        CHUNK,
        teacher=TEACHER if soft else None,
        hard_weight=HARD,
        correction=CORRECTION if corrected else None,
    )
    actual = torch.autograd.grad(2 * loss, (states, weight))
    hard_loss, kl = plain_losses(states, weight, CORRECTION if corrected else 0.0)
    share = torch.where(TARGETS >= 0, HARD, 0.0)
    wanted = share * hard_loss + (1 - share) * kl if soft else hard_loss
    expected = torch.autograd.grad(2 * (wanted * WEIGHTS).sum(), (states, weight))
    assert not losses.requires_grad
    torch.testing.assert_close(losses, wanted.detach())
    torch.testing.assert_close(loss, (wanted * WEIGHTS).sum())
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_cross_entropy_is_torchs() -> None:
    hidden, weight = leaf(ROWS, HIDDEN, seed=1), leaf(VOCAB, HIDDEN, seed=2)
    loss = chunked_cross_entropy(hidden, weight, TARGETS[0], WEIGHTS[0], CHUNK)
    plain = torch.nn.functional.cross_entropy(
        hidden @ weight.T, TARGETS[0], ignore_index=-1, reduction="none"
    )
    torch.testing.assert_close(loss, (plain * WEIGHTS[0]).sum())


def test_kl_to_itself_is_nothing() -> None:
    hidden, weight = leaf(ROWS, HIDDEN, seed=1), random(VOCAB, HIDDEN, seed=2)
    loss = chunked_kl(hidden, weight, hidden.detach(), weight, WEIGHTS[0], CHUNK)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert abs(loss.item()) < 1e-4
    assert gradient.abs().max() < 1e-5


def test_kl_with_targets_mixes_them_in() -> None:
    hidden, weight = random(ROWS, HIDDEN, seed=1), random(VOCAB, HIDDEN, seed=2)
    teacher = random(ROWS, 6, seed=8), random(VOCAB, 6, seed=9)
    wanted = WEIGHTS[0] * (TARGETS[0] >= 0)
    parts = [
        chunked_kl(hidden, weight, *teacher, wanted, CHUNK, TARGETS[0], share)
        for share in (0.0, 1.0, HARD)
    ]
    torch.testing.assert_close(parts[2], HARD * parts[1] + (1 - HARD) * parts[0])
    hard = chunked_cross_entropy(hidden, weight, TARGETS[0], WEIGHTS[0], CHUNK)
    torch.testing.assert_close(parts[1], hard)


def test_bfloat16_gradients_have_the_types_of_their_tensors() -> None:
    states = random(HEADS, ROWS, HIDDEN, seed=1).bfloat16().requires_grad_()
    weight = leaf(VOCAB, HIDDEN, seed=2)
    loss, _ = chunked_loss(states, weight, TARGETS, WEIGHTS, CHUNK)
    loss.backward()
    exact = states.detach().float().requires_grad_()
    weight_again = weight.detach().clone().requires_grad_()
    chunked_loss(exact, weight_again, TARGETS, WEIGHTS, CHUNK)[0].backward()
    assert states.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(states.grad.float(), exact.grad, rtol=0.05, atol=0.1)
    torch.testing.assert_close(weight.grad, weight_again.grad, rtol=0.05, atol=0.1)


class Widest(TorchDispatchMode):
    """The most elements that any tensor of the vocabulary's width has."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocab,):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("soft", [False, True])
def test_no_tensor_is_wider_than_a_chunk(soft: bool) -> None:
    rows, vocab, chunk = 400, 97, 16
    states = leaf(HEADS, rows, HIDDEN, seed=1)
    weight = leaf(vocab, HIDDEN, seed=2)
    teacher = Teacher(
        random(rows + HEADS, HIDDEN, seed=6),
        random(vocab, HIDDEN, seed=7),
        torch.arange(rows) + torch.arange(HEADS)[:, None] + 1,
    )
    targets = torch.arange(HEADS * rows).view(HEADS, rows) % vocab
    with Widest(vocab) as widest:
        loss, _ = chunked_loss(
            states,
            weight,
            targets,
            torch.ones(HEADS, rows),
            chunk,
            teacher=teacher if soft else None,
            hard_weight=HARD,
        )
        loss.backward()
    # of the teacher's states, K more are looked ahead to
    longest = chunk + HEADS - 1 if soft else chunk
    assert 0 < widest.elements <= longest * vocab
    with Widest(vocab) as plain:
        torch.nn.functional.cross_entropy(
            (states @ weight.T).flatten(0, 1), targets.flatten()
        ).backward()
    assert plain.elements == HEADS * rows * vocab


def test_rows_per_chunk_fall_with_the_vocabulary() -> None:
    assert rows_per_chunk(128_256) == 261
    assert rows_per_chunk(1 << 40) == 1
