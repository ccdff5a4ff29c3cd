# SPDX-License-Identifier: Apache-2.0
"""How good heads are: accuracy per head and rank, tokens per step of a tree."""

from __future__ import annotations

import torch

from vllm_medusa.calibration.looping import length_without_loop
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.store import Corpus
from vllm_medusa.tree import TokenTree

TOP = 10
"""Ranks that are measured."""

MISSED = 1000
"""Rank of a true token that is not among the best `TOP` guesses."""

NO_TARGET = -1
"""Rank where the answer has no token so far ahead."""

_CHUNK = 512


@torch.no_grad()
def rank_of_truth(heads: TrainableHeads, corpus: Corpus) -> torch.Tensor:
    """At which rank each head holds the true token.

    Returns:
        [K, num_tokens] int64; column i tells how the heads, reading the state that
        token i was drawn from, rank tokens i + 1 .. i + K. 0 is the best guess.
    """
    training = heads.training
    heads.eval()
    num_heads, num_tokens = heads.spec.num_heads, len(corpus)
    ranks = torch.full((num_heads, num_tokens), NO_TARGET)
    count = min(TOP, len(heads.token_map))
    for begin in range(0, num_tokens, _CHUNK):
        hidden = corpus.hidden[begin : begin + _CHUNK].to(heads.token_map.device)
        best = heads.logits(heads.states(hidden)).topk(count, dim=-1).indices
        guesses = heads.token_map[best].cpu()  # [K, B, TOP]
        for head in range(num_heads):
            end = min(begin + _CHUNK, num_tokens - head - 1)
            rows = torch.arange(begin, max(begin, end))
            ahead = rows + head + 1
            rows = rows[corpus.answers[ahead] == corpus.answers[rows]]
            hits = guesses[head, rows - begin] == corpus.tokens[rows + head + 1, None]
            place = hits.int().argmax(-1)
            ranks[head, rows] = torch.where(hits.any(-1), place, MISSED)
    heads.train(training)
    return ranks


def accuracies(
    ranks: torch.Tensor, wanted: torch.Tensor | None = None
) -> list[list[float]]:
    """Share of positions at which each head's guess of each rank is right.

    Args:
        ranks: [K, num_tokens], from `rank_of_truth`.
        wanted: [num_tokens] bool, positions to count; all if None.
    """
    table = []
    for row in ranks:
        counted = row != NO_TARGET
        if wanted is not None:
            counted &= wanted
        hits = torch.bincount(row[counted].clamp(max=TOP), minlength=TOP + 1)[:TOP]
        table.append((hits / counted.sum().clamp(min=1)).tolist())
    return table


def top_1(ranks: torch.Tensor) -> list[float]:
    """Share of positions at which each head's best guess is right, [K]."""
    return [row[0] for row in accuracies(ranks)]


def before_loops(corpus: Corpus) -> torch.Tensor:
    """[num_tokens] bool: True up to where the token's answer starts to loop."""
    lengths = torch.bincount(corpus.answers).tolist()
    parts = []
    for tokens in corpus.tokens.split([length for length in lengths if length]):
        clean = length_without_loop(tokens.tolist())
        parts.append(torch.arange(len(tokens)) < clean)
    return torch.cat(parts)


def tokens_per_step(
    ranks: torch.Tensor, tree: TokenTree, wanted: torch.Tensor | None = None
) -> float:
    """Tokens per step of decoding the answers with `tree`, greedy and exact.

    A walk over the recorded answers: from a position, follow the tree as long as
    the next true token is among the children; the accepted tokens and the one the
    base model adds are what the step gives.

    Args:
        ranks: [K, num_tokens], from `rank_of_truth`.
        tree: at most K deep.
        wanted: [num_tokens] bool; only steps that start at such positions count.
    """
    rows = {
        (parent, rank): row
        for row, (parent, rank) in enumerate(zip(tree.parents, tree.ranks, strict=True))
    }
    columns = ranks.T.tolist()
    counted = [True] * len(columns) if wanted is None else wanted.tolist()
    steps = tokens = position = 0
    while position < len(columns):
        node = accepted = 0
        for rank in columns[position][: tree.max_depth]:
            child = rows.get((node, rank))
            if child is None:
                break
            node = child
            accepted += 1
        if counted[position]:
            steps += 1
            tokens += 1 + accepted
        position += 1 + accepted
    return tokens / max(1, steps)
