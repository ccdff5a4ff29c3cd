# SPDX-License-Identifier: Apache-2.0
"""Rows that move in paged caches, against a plain loop over what lies where."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch

from tests.unit.kernels.trees import random_parents
from vllm_medusa.attention.cpu_cache import split_cache
from vllm_medusa.kernels.cache_views import group_views
from vllm_medusa.kernels.move_rows import RowMover, move_rows_reference

NUM_LAYERS, NUM_BLOCKS, BLOCK_SIZE = 3, 14, 4
NUM_REQS, MAX_BLOCKS, MAX_WIDTH = 4, 3, 7

Layers = list[tuple[torch.Tensor, torch.Tensor]]
# From a function that allocates zeros of a shape, views of all layers.
Layout = Callable[[Callable[..., torch.Tensor], int, int], Layers]


def apart(new: Callable[..., torch.Tensor], heads: int, size: int) -> Layers:
    caches = (new(2, NUM_BLOCKS, BLOCK_SIZE, heads, size) for _ in range(NUM_LAYERS))
    return [(cache[0], cache[1]) for cache in caches]


def interleaved(new: Callable[..., torch.Tensor], heads: int, size: int) -> Layers:
    caches = (new(NUM_BLOCKS, 2, BLOCK_SIZE, heads, size) for _ in range(NUM_LAYERS))
    return [(cache[:, 0], cache[:, 1]) for cache in caches]


def heads_first(new: Callable[..., torch.Tensor], heads: int, size: int) -> Layers:
    caches = (new(NUM_BLOCKS, 2, heads, BLOCK_SIZE, size) for _ in range(NUM_LAYERS))
    return [
        (cache[:, 0].transpose(1, 2), cache[:, 1].transpose(1, 2)) for cache in caches
    ]


def side_by_side(new: Callable[..., torch.Tensor], heads: int, size: int) -> Layers:
    caches = (
        new(NUM_BLOCKS, heads, BLOCK_SIZE, 2 * size).transpose(1, 2)
        for _ in range(NUM_LAYERS)
    )
    return [(cache[..., :size], cache[..., size:]) for cache in caches]


def all_layers_in_a_block(
    new: Callable[..., torch.Tensor], heads: int, size: int
) -> Layers:
    cache = new(NUM_BLOCKS, NUM_LAYERS, 2, BLOCK_SIZE, heads, size)
    return [(cache[:, layer, 0], cache[:, layer, 1]) for layer in range(NUM_LAYERS)]


def transposed_keys(new: Callable[..., torch.Tensor], heads: int, size: int) -> Layers:
    caches = (new(NUM_BLOCKS, heads, BLOCK_SIZE, 2 * size) for _ in range(NUM_LAYERS))
    pairs = (split_cache(cache) for cache in caches)
    return [
        (keys.permute(0, 3, 1, 2), values.transpose(1, 2)) for keys, values in pairs
    ]


def unlike_layers(new: Callable[..., torch.Tensor], heads: int, size: int) -> Layers:
    return [*apart(new, heads, size)[:1], *heads_first(new, heads + 1, size)[:1]]


def shared_layers(new: Callable[..., torch.Tensor], heads: int, size: int) -> Layers:
    first, second, _ = interleaved(new, heads, size)
    return [first, second, first, second]


LAYOUTS: list[Layout] = [
    apart,
    interleaved,
    heads_first,
    side_by_side,
    all_layers_in_a_block,
    transposed_keys,
    unlike_layers,
    shared_layers,
]
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8]


@dataclass(frozen=True)
class Paths:
    """Arguments of `RowMover.move`."""

    block_table: torch.Tensor
    bases: torch.Tensor
    rows: torch.Tensor
    num_sampled: torch.Tensor

    @property
    def arguments(self) -> tuple[torch.Tensor, ...]:
        return self.block_table, self.bases, self.rows, self.num_sampled


def random_paths(seed: int, dtype: torch.dtype = torch.int64) -> Paths:
    """Paths of which some move; the last request is padding and owns no block."""
    rng = random.Random(seed)
    blocks = rng.sample(range(1, NUM_BLOCKS), NUM_REQS * MAX_BLOCKS)
    table = torch.tensor(blocks, dtype=torch.int32).view(NUM_REQS, MAX_BLOCKS)
    table[-1] = 0
    paths = [[0]]
    while all(path == list(range(len(path))) for path in paths):
        paths = [random_path(rng) for _ in range(NUM_REQS - 1)]
    last = MAX_BLOCKS * BLOCK_SIZE - MAX_WIDTH
    bases = [rng.randint(0, last) for _ in paths] + [0]
    paths.append([0])
    rows = [path + path[-1:] * (MAX_WIDTH - len(path)) for path in paths]
    return Paths(
        block_table=table,
        bases=torch.tensor(bases, dtype=dtype),
        rows=torch.tensor(rows, dtype=torch.int32),
        num_sampled=torch.tensor(list(map(len, paths)), dtype=torch.int32),
    )


def random_path(rng: random.Random) -> list[int]:
    """Rows from the root of a random tree down to any of its rows."""
    tree = random_parents(rng, MAX_WIDTH)
    path = [rng.randrange(MAX_WIDTH)]
    while path[0]:
        path.insert(0, tree[path[0]])
    return path


def move_by_loop(layers: Layers, paths: Paths) -> None:
    views = {view.data_ptr(): view for layer in layers for view in layer}
    for view in views.values():
        old = view.clone()
        for request, path in enumerate(paths.rows.tolist()):
            for depth in range(1, int(paths.num_sampled[request])):
                base, table = int(paths.bases[request]), paths.block_table[request]
                source, target = base + path[depth], base + depth
                view[table[target // BLOCK_SIZE], target % BLOCK_SIZE] = old[
                    table[source // BLOCK_SIZE], source % BLOCK_SIZE
                ]


def move_by_reference(layers: Layers, paths: Paths) -> None:
    # Unlike layers all have one block size; a view of two layers counts once.
    views = [view for group in group_views(flatten(layers)) for view in group.views]
    move_rows_reference(views, *paths.arguments)


def move_by_kernel(layers: Layers, paths: Paths) -> None:
    RowMover(layers).move(*paths.arguments)


def flatten(layers: Layers) -> Sequence[torch.Tensor]:
    return [view for layer in layers for view in layer]


IMPLEMENTATIONS = pytest.mark.parametrize(
    "move",
    [
        pytest.param(move_by_reference, id="reference"),
        pytest.param(move_by_kernel, id="kernel", marks=pytest.mark.interpreter),
    ],
)


def allocate(
    layout: Layout, dtype: torch.dtype, heads: int, size: int
) -> tuple[list[torch.Tensor], Layers]:
    """The allocations as bytes, filled at random, and the layers in them."""
    generator = torch.Generator().manual_seed(0)
    allocations = []

    def new(*shape: int) -> torch.Tensor:
        cache = torch.zeros(shape, dtype=dtype)
        allocations.append(cache.view(torch.uint8))
        allocations[-1].random_(0, 256, generator=generator)
        return cache

    return allocations, layout(new, heads, size)


def check(
    move: Callable[[Layers, Paths], None],
    layout: Layout,
    dtype: torch.dtype,
    paths: Paths,
    *,
    heads: int = 2,
    size: int = 8,
) -> None:
    expected, expected_layers = allocate(layout, dtype, heads, size)
    before = [cache.clone() for cache in expected]
    move_by_loop(expected_layers, paths)
    assert not all(map(torch.equal, before, expected)), "nothing moves"
    found, layers = allocate(layout, dtype, heads, size)
    move(layers, paths)
    assert all(map(torch.equal, found, expected))


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype(move, layout, dtype):
    check(move, layout, dtype, random_paths(1))


@IMPLEMENTATIONS
@pytest.mark.parametrize("seed", range(2, 22))
def test_random_paths(move, seed):
    dtype = (torch.int32, torch.int64)[seed % 2]
    check(move, side_by_side, torch.bfloat16, random_paths(seed, dtype))


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("layout", [heads_first, transposed_keys])
def test_odd_head_sizes(move, layout, size, dtype):
    check(move, layout, dtype, random_paths(1), heads=3, size=size)


@IMPLEMENTATIONS
def test_rows_longer_than_a_program_copies(move):
    check(move, apart, torch.float32, random_paths(1), heads=5, size=512)


@IMPLEMENTATIONS
def test_path_whose_rows_move_into_each_others_slots(move):
    # Row 2 moves to 1, 3 to 2, 5 to 3: each but the first target is a source.
    paths = Paths(
        block_table=torch.tensor([[5, 1, 3]], dtype=torch.int32),
        bases=torch.tensor([2]),
        rows=torch.tensor([[0, 2, 3, 5]], dtype=torch.int32),
        num_sampled=torch.tensor([4], dtype=torch.int32),
    )
    check(move, interleaved, torch.float32, paths)


@IMPLEMENTATIONS
def test_what_was_not_accepted_stays(move):
    paths = random_paths(1)
    paths.num_sampled.fill_(1)
    found, layers = allocate(apart, torch.float32, 2, 8)
    before = [cache.clone() for cache in found]
    move(layers, paths)
    assert all(map(torch.equal, found, before))


@IMPLEMENTATIONS
def test_unused_rows_of_the_block_table_are_not_touched(move):
    """A position after the last accepted one may lie in somebody else's block."""
    paths = Paths(
        # The first request's second block is what the second one owns.
        block_table=torch.tensor([[1, 2], [2, 3]], dtype=torch.int32),
        bases=torch.tensor([1, 0]),
        rows=torch.tensor([[0, 2, 2, 2], [0, 2, 3, 3]], dtype=torch.int32),
        num_sampled=torch.tensor([2, 3], dtype=torch.int32),
    )
    check(move, apart, torch.float32, paths)


def test_alike_layers_share_a_launch():
    def groups(layout: Layout, dtype: torch.dtype = torch.bfloat16) -> list[int]:
        _, layers = allocate(layout, dtype, 2, 8)
        return [len(group.views) for group in group_views(flatten(layers))]

    for layout in (apart, interleaved, heads_first, side_by_side):
        assert groups(layout) == [2 * NUM_LAYERS]
    assert groups(transposed_keys) == [NUM_LAYERS, NUM_LAYERS]
    assert groups(unlike_layers) == [2, 2]
    assert groups(shared_layers) == [4]


def test_words_are_as_wide_as_the_memory_allows():
    def word_bytes(dtype: torch.dtype, size: int, layout: Layout = apart) -> list[int]:
        _, layers = allocate(layout, dtype, 2, size)
        return [group.layout.word_bytes for group in group_views(flatten(layers))]

    assert word_bytes(torch.bfloat16, 8) == [8]
    assert word_bytes(torch.bfloat16, 6) == [4]
    assert word_bytes(torch.bfloat16, 3) == [2]
    assert word_bytes(torch.float8_e4m3fn, 8) == [8]
    assert word_bytes(torch.float8_e4m3fn, 3) == [1]
    assert word_bytes(torch.float32, 8, transposed_keys) == [4, 8]
