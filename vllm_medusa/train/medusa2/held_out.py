# SPDX-License-Identifier: Apache-2.0
"""Held-out answers, as a backbone sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vllm_medusa.train.answers import Answer
from vllm_medusa.train.chunked_loss import rows_per_chunk
from vllm_medusa.train.medusa2.quality import Quality
from vllm_medusa.train.packing import PackedBatch
from vllm_medusa.train.store import Corpus

States = Callable[[PackedBatch], torch.Tensor]
"""States after the final norm, [B, T, H], of a batch."""


@dataclass(frozen=True)
class Observed:
    """What a model makes of N held-out answer tokens.

    Attributes:
        loss: [N] float32, negative log-probability of the token.
        best: [N] int64, the most probable token in its place.
        corpus: the tokens with the states they are drawn from.
    """

    loss: torch.Tensor
    best: torch.Tensor
    corpus: Corpus


class Observer:
    """Runs models over the held-out answers and compares them with the original.

    Args:
        answers: held out, with their prompts' tokens.
        batch_size: answers per forward pass.
        dtype: of the products where a call says nothing else.
        device: of the models.
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.answers = answers
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = device
        self._original_best: torch.Tensor | None = None

    def look(
        self,
        states: States,
        # [V, H]
        lm_head: torch.Tensor,
        dtype: torch.dtype | None = None,
    ) -> Observed:
        """Run a model, on the device, over all answers."""
        mixed = (dtype or self.dtype) == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            return observe(states, lm_head, self.answers, self.batch_size)

    def look_at_original(self, states: States, lm_head: torch.Tensor) -> Quality:
        """Run the original, with which the others are compared."""
        observed = self.look(states, lm_head)
        self._original_best = observed.best
        return self.quality(observed)

    def quality(self, observed: Observed) -> Quality:
        """How a model compares with the original."""
        assert self._original_best is not None
        mean = observed.loss.double().mean().item()
        agrees = observed.best == self._original_best
        return Quality(
            perplexity=math.exp(mean) if mean < 700 else math.inf,
            agreement=agrees.double().mean().item(),
            positions=len(agrees),
        )


@torch.no_grad()
def observe(
    states: States,
    # [V, H]
    lm_head: torch.Tensor,
    answers: Sequence[Answer],
    batch_size: int,
) -> Observed:
    """Run a model over all answers; the batches are moved to the LM head's device."""
    losses, best, tokens, kept = [], [], [], []
    rows = rows_per_chunk(len(lm_head))
    for batch in batches(answers, batch_size):
        batch = batch.to(lm_head.device)
        targets = batch.targets(1)
        wanted = targets >= 0
        hidden, truth = states(batch)[wanted], targets[wanted]
        tokens.append(truth.cpu())
        kept.append(hidden.to("cpu", torch.bfloat16))
        for part, right in zip(hidden.split(rows), truth.split(rows), strict=True):
            logits = (part.to(lm_head.dtype) @ lm_head.T).float()
            losses.append(F.cross_entropy(logits, right, reduction="none").cpu())
            best.append(logits.argmax(-1).cpu())
    lengths = torch.tensor([len(answer.answer_token_ids) for answer in answers])
    owner = torch.arange(len(answers)).repeat_interleave(lengths)
    corpus = Corpus(torch.cat(tokens), torch.cat(kept), owner)
    return Observed(torch.cat(losses), torch.cat(best), corpus)


def batches(answers: Sequence[Answer], batch_size: int) -> Iterator[PackedBatch]:
    """All answers in their order, one per row, padded to the longest of a batch."""
    for begin in range(0, len(answers), batch_size):
        part = answers[begin : begin + batch_size]
        rows = [answer.prompt_token_ids + answer.answer_token_ids for answer in part]
        shape = len(rows), max(map(len, rows))
        tokens, positions, segments = (
            torch.zeros(shape, dtype=torch.int64) for _ in range(3)
        )
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, (ids, answer) in enumerate(zip(rows, part, strict=True)):
            tokens[row, : len(ids)] = torch.tensor(ids)
            positions[row, : len(ids)] = torch.arange(len(ids))
            segments[row, : len(ids)] = 1
            mask[row, len(answer.prompt_token_ids) : len(ids)] = True
        yield PackedBatch(tokens, positions, segments, mask)
