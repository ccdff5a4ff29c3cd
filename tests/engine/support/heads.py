# SPDX-License-Identifier: Apache-2.0
"""Heads fitted to a tiny model's text in seconds: right often, not always.

A fit is independent of vllm_medusa.train: one residual block and a projection per
head, cross-entropy by Adam over hidden states gathered with transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from vllm_medusa.checkpoint import save_heads
from vllm_medusa.heads.spec import HeadsSpec


@dataclass(frozen=True)
class FittedHeads:
    """Weights of K residual heads and how often their guesses are right.

    blocks: float32 [K, H, H]; biases: float32 [K, H]; projections: float32 [K, V, H];
    accuracy: float32 [K, 10], accuracy[k, r] = how often guess r of head k is the true
    token, on text held out from the fit.
    """

    blocks: torch.Tensor
    biases: torch.Tensor
    projections: torch.Tensor
    accuracy: torch.Tensor


def _greedy_text(
    model: torch.nn.Module, num_rows: int, length: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy continuations of random prompts and the hidden state of each token.

    Returns tokens int64 [num_rows, length] and hidden float32 [num_rows, length, H].
    """
    generator = torch.Generator().manual_seed(seed)
    vocab_size = model.config.vocab_size
    prompts = torch.randint(3, vocab_size, (num_rows, 4), generator=generator)
    tokens = model.generate(
        prompts,
        min_new_tokens=length - 4,
        max_new_tokens=length - 4,
        do_sample=False,
        pad_token_id=0,
    )
    return tokens, model.model(tokens).last_hidden_state


_IGNORED = -100
"""Target where a text has ended, as cross-entropy ignores it."""


@torch.no_grad()
def _ranks(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How often each of the 10 best guesses is right: [..., K, V] -> [K, 10]."""
    hits = (logits.topk(10, dim=-1).indices == targets[..., None]).flatten(0, -3)
    known = (targets != _IGNORED).flatten(0, -2).sum(0)
    return hits.sum(0) / known[:, None]


def fit_heads(
    model_path: Path, *, num_heads: int = 4, num_steps: int = 100, seed: int = 0
) -> FittedHeads:
    """Fit `num_heads` heads to the model's greedy text."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        tokens, hidden = _greedy_text(model, 160, 48, seed)
    span = tokens.shape[1] - num_heads - 1
    # Head k (from 0) at position t guesses the token at t + k + 2.
    targets = torch.stack(
        [tokens[:, k + 2 : k + 2 + span] for k in range(num_heads)], dim=-1
    )  # [rows, span, K]
    return _fit(model, hidden[:, :span], targets, 20, num_steps, seed)


def fit_heads_to(
    model_path: Path,
    texts: Sequence[tuple[list[int], list[int]]],
    *,
    num_heads: int = 4,
    num_steps: int = 100,
    seed: int = 0,
) -> FittedHeads:
    """Fit heads to (prompt, answer) pairs, whatever made the answers.

    They know these texts by heart, so that long paths are accepted where sampling
    parameters lead away from the model's own greedy text.
    """
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.eval()
    span = max(len(answer) for _, answer in texts)
    hidden = torch.zeros(len(texts), span, model.config.hidden_size)
    targets = torch.full((len(texts), span, num_heads), _IGNORED)
    for row, (prompt, answer) in enumerate(texts):
        with torch.no_grad():
            states = model.model(torch.tensor([prompt + answer])).last_hidden_state[0]
        # From the prompt's last token on, whose next token needs no head.
        hidden[row, : len(answer)] = states[len(prompt) - 1 : -1]
        for head in range(num_heads):
            ahead = torch.tensor(answer[head + 1 :], dtype=torch.int64)
            targets[row, : len(ahead), head] = ahead
    return _fit(model, hidden, targets, 0, num_steps, seed)


def _fit(
    model: torch.nn.Module,
    # [rows, span, H]
    inputs: torch.Tensor,
    # [rows, span, K]
    targets: torch.Tensor,
    num_held_out: int,
    num_steps: int,
    seed: int,
) -> FittedHeads:
    """Fit by Adam; the accuracy is measured on the last `num_held_out` rows, or on all
    rows if that is 0."""
    num_heads = targets.shape[-1]
    hidden_size, vocab_size = inputs.shape[-1], model.config.vocab_size
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.zeros(num_heads, hidden_size, hidden_size, requires_grad=True)
    biases = torch.zeros(num_heads, hidden_size, requires_grad=True)
    projections = (
        torch.randn(num_heads, vocab_size, hidden_size, generator=generator)
        * hidden_size**-0.5
    ).requires_grad_()

    def logits_of(states: torch.Tensor) -> torch.Tensor:
        expanded = states[..., None, :]  # [..., 1, H]
        gate = torch.einsum("...h,kgh->...kg", states, blocks) + biases
        return torch.einsum(
            "...kh,kvh->...kv", expanded + functional.silu(gate), projections
        )

    num_train = len(inputs) - num_held_out
    optimizer = torch.optim.Adam([blocks, biases, projections], lr=2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, num_steps)
    for _ in range(num_steps):
        rows = torch.randint(0, num_train, (32,), generator=generator)
        loss = functional.cross_entropy(
            logits_of(inputs[rows]).flatten(0, 2),
            targets[rows].flatten(),
            ignore_index=_IGNORED,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    measured = slice(num_train if num_held_out else 0, None)
    with torch.no_grad():
        accuracy = _ranks(logits_of(inputs[measured]), targets[measured])
    return FittedHeads(blocks.detach(), biases.detach(), projections.detach(), accuracy)


def save_fitted(
    heads: FittedHeads, folder: Path, *, draft_vocab: int | None = None
) -> Path:
    """Save as a canonical checkpoint with accuracies.json beside it.

    With `draft_vocab` the heads guess only over so many tokens, in shuffled order.
    """
    num_heads, vocab_size, hidden_size = heads.projections.shape
    token_map = None
    if draft_vocab is not None:
        generator = torch.Generator().manual_seed(0)
        token_map = torch.randperm(vocab_size, generator=generator)[:draft_vocab]
    tensors: dict[str, torch.Tensor] = {}
    for head in range(num_heads):
        projection = heads.projections[head]
        tensors[f"blocks.{head}.layers.0.weight"] = heads.blocks[head]
        tensors[f"blocks.{head}.layers.0.bias"] = heads.biases[head]
        tensors[f"lm_heads.{head}.weight"] = (
            projection if token_map is None else projection[token_map]
        )
    if token_map is not None:
        tensors["token_map"] = token_map
    spec = HeadsSpec(
        num_heads=num_heads,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        projection="own",
        draft_vocab_size=draft_vocab,
    )
    save_heads(folder, spec, tensors)
    accuracies = {
        "accuracy": heads.accuracy.tolist(),
        "num_positions": 1000,
        "source": "greedy text held out from the fit",
    }
    (folder / "accuracies.json").write_text(json.dumps(accuracies))
    return folder
