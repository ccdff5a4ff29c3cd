# SPDX-License-Identifier: Apache-2.0
"""vLLM's GPU backends with trees in their metadata, as far as a CPU can run them.

The classes are vLLM's own. TRITON_ATTN's kernels run in Triton's interpreter, so that
backend is tried whole; FlashAttention's are replaced, FlashInfer does not import.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends import flash_attn, triton_attn

from tests.unit.attention.cases import Case, make_case
from tests.unit.attention.causal import causal_attention
from tests.unit.attention.specs import Spec
from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.gpu_flash_attn import (
    TreeFlashAttentionBackend,
    TreeFlashAttentionMetadataBuilder,
)
from vllm_medusa.attention.gpu_triton_attn import (
    TreeTritonAttentionBackend,
    TreeTritonAttentionImpl,
    TreeTritonAttentionMetadataBuilder,
)
from vllm_medusa.attention.prefix_reference import ReferencePrefix
from vllm_medusa.attention.tree_impl import TreeAttentionImpl
from vllm_medusa.attention.tree_metadata import TreeMetadataBuilder
from vllm_medusa.attention.tree_rows import TreeRows

CPU = torch.device("cpu")
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 4, 2, 32, 16
DTYPE = torch.float16
# Two requests with trees, then one with plain rows.
MIXED = Spec(rows=(5, 3, 4), bases=(20, 0, 33), dtype=DTYPE, layout="hnd", seed=3)
NUM_TREES, NUM_TREE_TOKENS = 2, 8


class Trees:
    """A runner that knows the first requests of `case` to have trees."""

    def __init__(self, case: Case, num_trees: int = NUM_TREES) -> None:
        trees = case.trees
        starts = trees.query_start_loc
        self.captures: list[bool] = []
        self.answer: TreeRows | None = replace(
            trees,
            num_reqs=num_trees,
            num_tokens=int(starts[num_trees]),
            is_whole_step=num_trees == trees.num_reqs,
            query_start_loc=starts[: num_trees + 1],
            seq_lens=trees.seq_lens[:num_trees],
            depths=trees.depths[:num_trees],
            ancestors=trees.ancestors[:num_trees],
        )

    def rows(
        self, common: CommonAttentionMetadata, for_capture: bool
    ) -> TreeRows | None:
        self.captures.append(for_capture)
        return self.answer


class Counted:
    """An implementation that only counts how often it is prepared."""

    def __init__(self) -> None:
        self.prepared: list[TreeRows] = []

    def prepare(self, trees: TreeRows) -> None:
        self.prepared.append(trees)


def common_metadata(case: Case) -> CommonAttentionMetadata:
    trees = case.trees
    return CommonAttentionMetadata(
        query_start_loc=trees.query_start_loc,
        query_start_loc_cpu=trees.query_start_loc,
        seq_lens=trees.seq_lens.clone(),
        num_reqs=trees.num_reqs,
        num_actual_tokens=trees.num_tokens,
        max_query_len=trees.width,
        max_seq_len=trees.max_seq_len,
        block_table_tensor=case.kv.block_table,
        slot_mapping=torch.zeros(trees.num_tokens, dtype=torch.int64),
    )


def triton_builder() -> TreeTritonAttentionMetadataBuilder:
    """vLLM's builder without its constructor, which wants a whole engine."""
    builder = object.__new__(TreeTritonAttentionMetadataBuilder)
    scratch = torch.empty(1)
    builder.__dict__.update(
        # Below this many requests vLLM splits contexts, with buffers it made for it.
        seq_threshold_3D=0,
        num_par_softmax_segments=16,
        softmax_segm_output=scratch,
        softmax_segm_max=scratch,
        softmax_segm_expsum=scratch,
        max_seqs_64_segments=0,
        rswa_window=None,
    )
    return builder


def flash_builder() -> TreeFlashAttentionMetadataBuilder:
    builder = object.__new__(TreeFlashAttentionMetadataBuilder)
    builder.__dict__.update(
        aot_schedule=False,
        aot_sliding_window=(-1, -1),
        use_full_cuda_graph=False,
        max_cudagraph_size=None,
        dcp_world_size=1,
        mm_prefix_query_ranges_np=None,
        rswa_window=None,
    )
    return builder


def triton_impl(**options: Any) -> TreeTritonAttentionImpl:
    return TreeTritonAttentionImpl(
        num_heads=NUM_HEADS,
        head_size=HEAD_SIZE,
        scale=HEAD_SIZE**-0.5,
        num_kv_heads=NUM_KV_HEADS,
        **{
            "alibi_slopes": None,
            "sliding_window": None,
            "kv_cache_dtype": "auto",
            **options,
        },
    )


def attention_layer(impl: TreeAttentionImpl, cache: torch.Tensor) -> Any:
    scale = torch.tensor(1.0)
    return SimpleNamespace(
        layer_name="model.layers.0.attn",
        impl=impl,
        kv_cache=cache,
        attn_backend=TreeTritonAttentionBackend,
        dtype=DTYPE,
        query_quant=None,
        _q_scale=scale,
        _k_scale=scale,
        _v_scale=scale,
    )


def cache_of(case: Case) -> torch.Tensor:
    """The cache as vLLM hands it out, [blocks, heads, tokens, 2 * head_size]."""
    keys, values = case.kv.keys, case.kv.values
    cache = torch.cat([keys, values], dim=-1).transpose(1, 2).contiguous()
    # What nobody wrote is NaN; vLLM's kernels multiply it by zero.
    return cache.nan_to_num(0.0)


@pytest.mark.parametrize("make", [triton_builder, flash_builder])
def test_metadata_has_trees(make: Any) -> None:
    builder = make()
    case = make_case(MIXED, CPU)
    common = common_metadata(case)
    assert builder.build(0, common).trees is None, "no runner, no trees"

    trees, counted = Trees(case), Counted()
    builder.step_trees, builder.preparables = trees, [counted]
    metadata = builder.build(0, common)
    assert metadata.trees is trees.answer
    assert metadata.block_table is case.kv.block_table
    assert counted.prepared == [trees.answer]
    assert trees.captures == [False]

    trees.answer = None
    assert builder.build(0, common).trees is None
    assert len(counted.prepared) == 1, "nothing to prepare without trees"


@pytest.mark.parametrize("make", [triton_builder, flash_builder])
def test_capture(make: Any) -> None:
    """The runner is told of a capture, and only of a capture."""
    builder = make()
    case = make_case(MIXED, CPU)
    builder.step_trees = trees = Trees(case)
    metadata = builder.build_for_cudagraph_capture(common_metadata(case))
    assert metadata.trees is trees.answer
    builder.build(0, common_metadata(case))
    assert trees.captures == [True, False]


@pytest.mark.parametrize(
    "builder", [TreeTritonAttentionMetadataBuilder, TreeFlashAttentionMetadataBuilder]
)
def test_no_graphs_of_mixed_batches(builder: type[TreeMetadataBuilder]) -> None:
    nothing: Any = None
    support = builder.get_cudagraph_support(nothing, nothing)
    assert support == AttentionCGSupport.UNIFORM_BATCH


def test_less_support_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    never = AttentionCGSupport.NEVER
    upstream = triton_attn.TritonAttentionMetadataBuilder
    monkeypatch.setattr(upstream, "_cudagraph_support", never)
    builder = TreeTritonAttentionMetadataBuilder
    assert builder.get_cudagraph_support(None, None) == never


@pytest.mark.parametrize(
    ("backend", "upstream"),
    [
        (TreeTritonAttentionBackend, triton_attn.TritonAttentionBackend),
        (TreeFlashAttentionBackend, flash_attn.FlashAttentionBackend),
    ],
)
def test_classes(backend: Any, upstream: Any) -> None:
    """Known to vLLM by the name of its own, and built from its own."""
    assert backend.get_name() == upstream.get_name()
    assert not backend.forward_includes_kv_cache_update
    for getter in ("get_impl_cls", "get_builder_cls"):
        ours, theirs = (getattr(cls, getter)() for cls in (backend, upstream))
        assert issubclass(ours, theirs)
        assert ours is not theirs


@pytest.mark.interpreter
@pytest.mark.parametrize("num_trees", [0, 2, 3])
def test_forward(num_trees: int) -> None:
    """Plain rows by vLLM's kernel, tree rows by ours, in one step."""
    case = make_case(MIXED, CPU)
    builder, impl = triton_builder(), triton_impl()
    attention = CascadeTreeAttention(ReferencePrefix(), 8, CPU)
    if num_trees:
        builder.step_trees, builder.preparables = Trees(case, num_trees), [attention]
    cache = cache_of(case)
    layer = attention_layer(impl, cache)
    impl.use(attention, impl.facts(layer), layer)
    metadata = builder.build(0, common_metadata(case))
    output = torch.full_like(case.query, 7.0)
    unused = torch.empty(0)
    assert (
        impl.forward(layer, case.query, unused, unused, cache, metadata, output)
        is output
    )
    expected = case.expected
    tokens = int(case.trees.query_start_loc[num_trees])
    expected = torch.cat([expected[:tokens], causal_attention(case)[tokens:]])
    torch.testing.assert_close(output.float(), expected, atol=3e-3, rtol=3e-3)


def test_profiling_run() -> None:
    """vLLM measures memory without metadata."""
    output = torch.ones(3, NUM_HEADS, HEAD_SIZE)
    unused = torch.empty(0)
    triton_impl().forward(
        SimpleNamespace(),
        output,
        unused,
        unused,
        unused,
        None,
        output,  # type: ignore[arg-type]
    )
    assert (output == 0).all()


@pytest.mark.interpreter
@pytest.mark.parametrize("heads_first", [False, True])
def test_cache_views(heads_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our views read what vLLM writes, in both orders in memory."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    shape = (3, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    cache = torch.zeros(shape)
    if not heads_first:
        cache = torch.zeros(3, BLOCK_SIZE, NUM_KV_HEADS, 2 * HEAD_SIZE).transpose(1, 2)
    impl = triton_impl()
    key, value = (torch.randn(5, NUM_KV_HEADS, HEAD_SIZE) for _ in range(2))
    slots = torch.tensor([0, 17, 18, 31, 40])
    layer = attention_layer(impl, cache)
    impl.do_kv_cache_update(layer, key, value, cache, slots)
    keys, values = impl.cache_views(cache)
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    assert torch.equal(keys[blocks, offsets], key)
    assert torch.equal(values[blocks, offsets], value)


def test_facts() -> None:
    cache = torch.zeros(3, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE).to(DTYPE)
    impl = triton_impl(sliding_window=100, logits_soft_cap=30.0)
    facts = impl.facts(attention_layer(impl, cache))
    assert facts.backend == "TRITON_ATTN"
    assert (facts.num_heads, facts.num_kv_heads) == (NUM_HEADS, NUM_KV_HEADS)
    assert (facts.head_size, facts.block_size) == (HEAD_SIZE, BLOCK_SIZE)
    assert (facts.sliding_window, facts.soft_cap) == (100, 30.0)
    assert facts.flash_version is None
    assert not facts.is_quantised
    # Heads lie before tokens: xformers reads tokens evenly spaced.
    assert facts.xformers_refusal is not None
    assert "VLLM_KV_CACHE_LAYOUT=LBNHC" in facts.xformers_refusal
    flat = torch.zeros(3, BLOCK_SIZE, NUM_KV_HEADS, 2 * HEAD_SIZE).to(DTYPE)
    layer = attention_layer(impl, flat.transpose(1, 2))
    assert impl.facts(layer).xformers_refusal is None


@pytest.mark.parametrize("quantises_queries", [False, True])
def test_quantised_cache(quantises_queries: bool) -> None:
    """Scales go with the cache; queries of 8 bits bring theirs into the keys'."""
    impl = triton_impl()
    impl.kv_cache_dtype = "fp8"
    shape = (3, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    layer = attention_layer(impl, torch.zeros(shape, dtype=torch.uint8))
    layer._q_scale, layer._k_scale, layer._v_scale = torch.tensor([0.5, 0.25, 2.0])
    layer.query_quant = object() if quantises_queries else None
    impl.check_support(layer)
    facts = impl.facts(layer)
    assert facts.is_quantised
    assert facts.query_dtype == (facts.cache_dtype if quantises_queries else DTYPE)
    seen: dict[str, Any] = {}

    class Recorder:
        name = "triton"

        def attend(self, query: Any, kv: Any, *rest: Any) -> None:
            seen.update(query=query, kv=kv)

    impl.use(Recorder(), facts, layer)
    case = make_case(MIXED, CPU)
    trees = Trees(case).answer
    query = case.query.to(facts.query_dtype)
    metadata = SimpleNamespace(trees=trees, block_table=case.kv.block_table)
    impl.attend_trees(query, layer.kv_cache, metadata, trees, case.query.clone())
    assert seen["query"].dtype == DTYPE
    assert seen["query"].shape[0] == NUM_TREE_TOKENS
    kv = seen["kv"]
    assert kv.keys.dtype == facts.cache_dtype
    assert kv.block_table.shape[0] == NUM_TREES
    assert float(kv.key_scale) == (0.125 if quantises_queries else 0.25)
    assert float(kv.value_scale) == 2.0


def test_no_fused_output_quantisation() -> None:
    assert triton_impl().fused_output_quant_supported(object()) is False
