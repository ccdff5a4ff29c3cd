# SPDX-License-Identifier: Apache-2.0
"""Our own Triton kernels against dense attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.attention.cases import make_case
from tests.unit.attention.causal import causal_attention
from tests.unit.attention.devices import skip_unless_triton_takes
from tests.unit.attention.specs import FP8, LARGE, SMALL, Spec, model_specs
from vllm_medusa.attention.triton_tree import TritonTreeAttention
from vllm_medusa.errors import UnsupportedError


@pytest.mark.parametrize("num_processors", [1, 40], ids=["whole", "split"])
@pytest.mark.parametrize("name", SMALL)
def test_small(name: str, num_processors: int, triton_device: torch.device) -> None:
    skip_unless_triton_takes(SMALL[name], triton_device)
    attention = TritonTreeAttention(triton_device, 128, num_processors)
    make_case(SMALL[name], triton_device).check(attention)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LARGE)
def test_large(name: str) -> None:
    device = torch.device("cuda")
    skip_unless_triton_takes(LARGE[name], device)
    make_case(LARGE[name], device).check(TritonTreeAttention(device, 128))


@pytest.mark.parametrize("seed", range(4))
def test_random_batches(seed: int, triton_device: torch.device) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw_ints(low: int, high: int, count: int) -> tuple[int, ...]:
        return tuple(torch.randint(low, high, (count,), generator=generator).tolist())

    num_reqs = 4
    attention = TritonTreeAttention(triton_device, 32, num_processors=30)
    # One instance after another batch: the buffers hold what is left of it.
    for _ in range(2):
        spec = Spec(
            rows=(*draw_ints(0, 12, num_reqs - 1), 1),
            bases=draw_ints(0, 90, num_reqs),
            block_size=16 * 2 ** draw_ints(0, 2, 1)[0],
            sliding_window=(None, 7, 40)[draw_ints(0, 3, 1)[0]],
            soft_cap=(0.0, 2.0)[draw_ints(0, 2, 1)[0]],
            seed=seed,
        )
        make_case(spec, triton_device).check(attention)


@pytest.mark.parametrize("num_processors", [1, 40], ids=["whole", "split"])
def test_chain_is_causal_attention(
    num_processors: int, triton_device: torch.device
) -> None:
    case = make_case(SMALL["chain"], triton_device)
    attention = TritonTreeAttention(triton_device, 32, num_processors)
    torch.testing.assert_close(
        case.attend(attention).cpu(), causal_attention(case), atol=2e-5, rtol=2e-5
    )


def test_tiles_of_rows(triton_device: torch.device) -> None:
    """More packed rows than a tile holds, and a last tile that is nearly empty."""
    spec = Spec(rows=(33, 11), bases=(30, 2), num_heads=3, num_kv_heads=1)
    attention = TritonTreeAttention(triton_device, 32, num_processors=1)
    make_case(spec, triton_device).check(attention)
    make_case(replace(spec, dtype=torch.float16), triton_device).check(attention)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_reads_no_other_request(triton_device: torch.device) -> None:
    """One request's blocks are poisoned: nobody else's rows change."""
    spec = Spec(rows=(5, 4, 3), bases=(20, 37, 6))
    case = make_case(spec, triton_device)
    attention = TritonTreeAttention(triton_device, 32, num_processors=40)
    before = case.attend(attention)
    blocks = case.kv.block_table[1, :3].long()
    case.kv.keys[blocks] = torch.nan
    case.kv.values[blocks] = torch.nan
    after = case.attend(attention)
    others = [0, 1, 2, 3, 4, 9, 10, 11]
    assert torch.equal(after[others], before[others])
    assert after[5:9].isnan().all()


def test_dry_run_with_short_lengths(triton_device: torch.device) -> None:
    """Captures run with seq_lens of 1, less than the rows: nothing else is read."""
    case = make_case(Spec(rows=(6,), bases=(0,)), triton_device)
    short = replace(case.trees, seq_lens=torch.ones_like(case.trees.seq_lens))
    case = replace(case, trees=short)
    case.check(TritonTreeAttention(triton_device, 32, num_processors=1))


def test_split_follows_sizes_known_on_the_host() -> None:
    cpu = torch.device("cpu")
    attention = TritonTreeAttention(cpu, 128, num_processors=132)

    def parts(spec: Spec, bound: int) -> int:
        case = make_case(replace(spec, max_seq_len=bound), cpu)
        return attention.num_parts(case.query, case.kv, case.trees)

    vicuna, *_ = model_specs(90)
    assert parts(vicuna, 4096) == 8
    assert parts(vicuna, 100) == 1
    batch = replace(vicuna, rows=(64,) * 4, bases=(3,) * 4)
    assert parts(batch, 4096) == 2
    batch = replace(vicuna, rows=(64,) * 8, bases=(3,) * 8)
    assert parts(batch, 4096) == 1


@pytest.mark.gpu
def test_graph_replays_with_other_lengths() -> None:
    device = torch.device("cuda")
    spec = Spec(
        rows=(9, 9),
        bases=(0, 0),
        head_size=64,
        dtype=torch.bfloat16,
        max_seq_len=4096,
    )
    captured = make_case(spec, device)
    cases = [
        make_case(replace(spec, rows=rows, bases=bases, seed=seed), device)
        for seed, rows, bases in ((1, (9, 9), (700, 33)), (2, (9, 4), (1, 2500)))
    ]
    # Every tensor of the graph is a buffer that each replay fills anew.
    widest = max(case.kv.block_table.shape[1] for case in cases)
    most = max(case.kv.keys.shape[0] for case in cases)
    cache = torch.zeros(most, 16, 2, 128, dtype=spec.dtype, device=device)
    keys, values = cache.split(64, dim=-1)
    table = torch.zeros(2, widest, dtype=torch.int32, device=device)
    buffers = replace(
        captured,
        kv=replace(captured.kv, keys=keys, values=values, block_table=table),
    )
    attention = TritonTreeAttention(device, 64)
    output = torch.zeros_like(captured.query)

    def attend() -> None:
        attention.attend(
            buffers.query, buffers.kv, buffers.trees, output, buffers.scaling
        )

    attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    for case in cases:
        count = case.trees.num_tokens
        buffers.query[:count] = case.query
        keys[: case.kv.keys.shape[0]] = case.kv.keys
        values[: case.kv.values.shape[0]] = case.kv.values
        table[:, : case.kv.block_table.shape[1]] = case.kv.block_table
        for name in ("query_start_loc", "seq_lens", "depths", "ancestors"):
            getattr(buffers.trees, name).copy_(getattr(case.trees, name))
        graph.replay()
        torch.testing.assert_close(
            output[:count].float().cpu(), case.expected, atol=2e-2, rtol=2e-2
        )


def test_refuses_unknown_types_and_sizes_by_name() -> None:
    cpu = torch.device("cpu")
    attention = TritonTreeAttention(cpu, 64, num_processors=1)
    case = make_case(Spec(rows=(2,), bases=(3,)), cpu)
    with pytest.raises(UnsupportedError, match=r"queries of float32, .*float64"):
        replace(case, query=case.query.double()).attend(attention)
    with pytest.raises(UnsupportedError, match="does not read a KV cache of"):
        kv = replace(case.kv, keys=case.kv.keys.to(torch.int8))
        replace(case, kv=kv).attend(attention)
    case = make_case(Spec(rows=(2,), bases=(3,), head_size=80), cpu)
    with pytest.raises(UnsupportedError, match="head sizes up to 64, not 80"):
        case.attend(attention)
    case = make_case(Spec(rows=(2,), bases=(3,), head_size=512), cpu)
    with pytest.raises(UnsupportedError, match="from 16 to 256, not 512"):
        case.attend(TritonTreeAttention(cpu, 512, num_processors=1))


@pytest.mark.gpu
def test_old_gpus_refuse_e4m3() -> None:
    if torch.cuda.get_device_capability() >= (8, 9):
        pytest.skip("this GPU reads e4m3")
    device = torch.device("cuda")
    case = make_case(
        Spec(rows=(2,), bases=(3,), dtype=torch.float16, cache_dtype=FP8), device
    )
    with pytest.raises(UnsupportedError, match="of compute capability"):
        case.attend(TritonTreeAttention(device, 64))
