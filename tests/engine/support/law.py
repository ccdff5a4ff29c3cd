# SPDX-License-Identifier: Apache-2.0
"""The exact law of a model's next tokens, and a chi-square test against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

Law = Mapping[tuple[int, ...], float]


@torch.no_grad()
def exact_law(
    model_path: Path, prompt: list[int], length: int, *, top_k: int, temperature: float
) -> Law:
    """Probability of every continuation of `length` tokens, by enumeration.

    Temperature first, then the `top_k` best tokens renormalised, as vLLM samples.
    """
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.eval()
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        paths = list(law)
        contexts = torch.tensor([[*prompt, *path] for path in paths])
        logits = model(contexts).logits[:, -1].double() / temperature
        best = logits.topk(top_k, dim=-1)
        probabilities = best.values.softmax(-1)
        law = {
            (*path, token): law[path] * probability
            for path, tokens, row in zip(
                paths, best.indices.tolist(), probabilities.tolist(), strict=True
            )
            for token, probability in zip(tokens, row, strict=True)
        }
    return law


def marginal(law: Law, positions: slice) -> Law:
    """Law of the tokens at some positions."""
    result: Counter[tuple[int, ...]] = Counter()
    for path, probability in law.items():
        result[path[positions]] += probability  # type: ignore[assignment]
    return result  # type: ignore[return-value]


def chi_square(samples: Iterable[tuple[int, ...]], law: Law) -> float:
    """P-value of the samples under `law`.

    Cells of an expected count below 5 are pooled. A sample outside of the law's
    support gives 0.
    """
    counts = Counter(samples)
    if not counts.keys() <= law.keys():
        return 0.0
    total = sum(counts.values())
    observed, expected = [], []
    rare_observed = rare_expected = 0.0
    for cell, probability in law.items():
        if probability * total >= 5:
            observed.append(counts[cell])
            expected.append(probability * total)
        else:
            rare_observed += counts[cell]
            rare_expected += probability * total
    if rare_expected:
        observed.append(rare_observed)
        expected.append(rare_expected)
    o, e = torch.tensor(observed).double(), torch.tensor(expected).double()
    return _p_value(((o - e) ** 2 / e).sum(), len(observed))


def same_law(
    samples: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]]
) -> float:
    """P-value of two samples under the hypothesis that they have one law.

    Cells of fewer than 10 samples in all are pooled.
    """
    mine, theirs = Counter(samples), Counter(others)
    cells = []
    rare = torch.zeros(2)
    for cell in mine | theirs:
        counts = torch.tensor([mine[cell], theirs[cell]])
        if counts.sum() >= 10:
            cells.append(counts)
        else:
            rare = rare + counts
    if rare.sum():
        cells.append(rare)
    table = torch.stack(cells).double()  # [cells, 2]
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    return _p_value(((table - expected) ** 2 / expected).sum(), len(cells))


def _p_value(statistic: torch.Tensor, num_cells: int) -> float:
    half_freedom = torch.tensor((num_cells - 1) / 2).double()
    return torch.special.gammaincc(half_freedom, statistic / 2).item()
