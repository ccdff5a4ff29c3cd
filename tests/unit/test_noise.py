# SPDX-License-Identifier: Apache-2.0
"""Noise by key: its law, the independence of keys, and its ends."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from vllm_medusa import noise
from vllm_medusa.noise import Stream, exponential, uniform

COUNT = 1 << 16
# A right hash fails once in 10,000 choices of the keys.
P_VALUE = 1e-4
SOME = torch.arange(COUNT)
ONE = torch.tensor(7)


def chi_square(counts: torch.Tensor) -> float:
    """P-value of counts of equally probable cells."""
    expected = counts.double().mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    half_freedom = torch.tensor((len(counts) - 1) / 2).double()
    return torch.special.gammaincc(half_freedom, statistic / 2).item()


# What tells the keys apart: every part of a key, small numbers and far ones.
KEYS = {
    "seeds": lambda stream: uniform(stream, SOME, ONE, 3),
    "negative seeds": lambda stream: uniform(stream, -SOME, ONE, 3),
    "large seeds": lambda stream: uniform(stream, SOME * (1 << 47), ONE, 3),
    "positions": lambda stream: uniform(stream, ONE, SOME, 3),
    "index": lambda stream: uniform(stream, ONE, ONE, SOME),
    "two indices": lambda stream: uniform(
        stream, ONE, ONE, SOME[:256, None], SOME[:256]
    ).flatten(),
}


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("keys", KEYS)
def test_uniform(keys: str, stream: Stream) -> None:
    """Also pairs of neighbours, and the lowest of the first 16 binary digits."""
    numbers = KEYS[keys](stream)
    assert numbers.dtype == torch.float32
    assert numbers.shape == (COUNT,)
    cells = (numbers * 64).long()
    assert chi_square(cells.bincount(minlength=64)) > P_VALUE
    pairs = cells[:-1:2] * 64 + cells[1::2]
    assert chi_square(pairs.bincount(minlength=64 * 64)) > P_VALUE
    low = (numbers * (1 << 16)).long() % 64
    assert chi_square(low.bincount(minlength=64)) > P_VALUE


def test_streams_and_keys_are_independent() -> None:
    """Every two of them: no correlation, and the joint law is uniform."""
    sets = [of_keys(stream) for stream in Stream for of_keys in KEYS.values()] + [
        uniform(Stream.COIN, ONE + 1, SOME, 3),
        uniform(Stream.COIN, ONE, SOME, 4),
        uniform(Stream.COIN, ONE, SOME + 1, 3),
        uniform(Stream.COIN, SOME, SOME, 3),
        uniform(Stream.COIN, SOME, SOME, SOME),
    ]
    for a, b in combinations(sets, 2):
        same = (a == b).float().mean()
        if same > 0.01:
            # The same keys by another way, such as a shift by one.
            pytest.fail(f"{same:.2f} of the numbers are equal")
        correlation = torch.corrcoef(torch.stack((a, b)))[0, 1]
        assert correlation.abs() < 4.5 / COUNT**0.5
        cells = (a * 16).long() * 16 + (b * 16).long()
        assert chi_square(cells.bincount(minlength=256)) > P_VALUE / 100


def test_one_bit_changes_half_of_the_bits() -> None:
    keys = torch.arange(2000)
    for bit in (0, 1, 17, 40, 62):
        changed = keys ^ (1 << bit)
        numbers = [
            uniform(Stream.DRAFT, key, ONE, dtype=torch.float64)
            for key in (keys, changed)
        ]
        bits = [(one * (1 << 32)).long() for one in numbers]
        flipped = torch.zeros(2000)
        for place in range(32):
            flipped += ((bits[0] ^ bits[1]) >> place & 1).float()
        assert abs(flipped.mean() - 16) < 0.4


def test_is_a_function_of_the_key() -> None:
    """A row of a batch is what it is alone; numbers and tensors are the same key."""
    generator = torch.Generator().manual_seed(0)
    seeds, positions = torch.randint(-(1 << 62), 1 << 62, (2, 5), generator=generator)
    heads, tokens = torch.arange(3)[:, None], torch.arange(11)
    arguments = (seeds[:, None, None], positions[:, None, None], heads, tokens)
    batch = uniform(Stream.DRAFT, *arguments)
    assert batch.shape == (5, 3, 11)
    assert torch.equal(batch, uniform(Stream.DRAFT, *arguments))
    for request in range(5):
        for head in range(3):
            alone = uniform(
                Stream.DRAFT, seeds[request], positions[request], head, tokens
            )
            assert torch.equal(alone, batch[request, head])


def test_inputs_are_not_written() -> None:
    seeds, positions, index = torch.arange(4), torch.arange(4), torch.arange(4)
    uniform(Stream.DRAFT, seeds, positions, index)
    for given in (seeds, positions, index):
        assert given.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("seed", "position", "index"), [(0, 0, 0), (-5, 17, 1), ((1 << 62) + 3, 1 << 40, 9)]
)
def test_is_split_mix_64_of_the_parts(seed: int, position: int, index: int) -> None:
    """By Python's own integers: a seed's texts are the same on every machine."""
    state = seed % 2**64
    for part in (Stream.COIN, position, index):
        z = (state + 0x9E3779B97F4A7C15 * (part + 1)) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        state = z ^ (z >> 31)
    found = uniform(Stream.COIN, torch.tensor(seed), torch.tensor(position), index)
    assert found == torch.tensor(((state >> 1) | 1) / 2**63)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the hash gives: above 0, below 1, exponentials finite and positive."""
    hashed = torch.tensor([0, 1, 2, 3, -1, -2, 1 << 62, -(1 << 63), (1 << 63) - 1])
    monkeypatch.setattr(noise, "_mix", lambda state: hashed.clone())
    numbers = uniform(Stream.DRAFT, torch.zeros(9, dtype=torch.int64), ONE, dtype=dtype)
    assert numbers.dtype == dtype
    assert numbers.min() == 2.0**-63
    largest = 1 - torch.finfo(dtype).eps / 2
    assert numbers.max() == largest < 1
    assert (torch.nextafter(numbers.max(), torch.tensor(2.0, dtype=dtype))) == 1
    found = exponential(Stream.DRAFT, torch.zeros(9, dtype=torch.int64), ONE)
    assert found.dtype == torch.float32
    assert ((found > 0) & found.isfinite() & found.log().isfinite()).all()
    assert found.min() == 2.0**-63


def test_small_numbers_are_as_frequent_as_they_should() -> None:
    """Not a multiple of 2**-24: below it lie numbers in their right proportion."""
    keys = torch.arange(1 << 11)
    numbers = uniform(Stream.COIN, ONE, ONE, keys[:, None], keys).flatten()
    small = numbers[numbers < 2.0**-12]
    assert abs(len(small) - (1 << 10)) < 4 * 32
    cells = (small * (1 << 16)).long()
    assert chi_square(cells.bincount(minlength=16)) > P_VALUE
    # Multiples of 2**-24 would be 4096 numbers, so that an eighth came twice.
    assert len(small.unique()) > 0.99 * len(small)


def test_exponential() -> None:
    """By its own distribution function."""
    numbers = exponential(Stream.DRAFT, SOME, ONE, 0)
    assert chi_square(((-numbers).exp() * 64).long().bincount(minlength=64)) > P_VALUE
    assert abs(numbers.mean() - 1) < 5 / COUNT**0.5


def test_largest_scores_are_draws_without_replacement() -> None:
    """The pairs that the top 2 give, against their probabilities."""
    q = torch.tensor([0.5, 0.3, 0.15, 0.05])
    noise_of = exponential(Stream.DRAFT, SOME[:, None], ONE, 0, torch.arange(4))
    first, second = (q.log() - noise_of.log()).topk(2).indices.T
    counts = (first * 4 + second).bincount(minlength=16).double().view(4, 4)
    expected = q[:, None] * q / (1 - q[:, None]) * COUNT
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    assert counts[~off_diagonal].sum() == 0
    error = (counts - expected)[off_diagonal]
    statistic = (error**2 / expected[off_diagonal]).sum() / 2
    assert torch.special.gammaincc(torch.tensor(11 / 2).double(), statistic) > P_VALUE
