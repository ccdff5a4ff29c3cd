# SPDX-License-Identifier: Apache-2.0
"""Compile the launches of Triton tree attention for a GPU; prints JSON.

Usage: python -m tests.unit.attention.compile_triton CAPABILITY
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.triton_compile import main

_H100_PROCESSORS = 132


def _launch_everything(capability: int) -> None:
    from tests.unit.attention.cases import make_case
    from tests.unit.attention.specs import model_specs
    from vllm_medusa.attention.triton_tree import TritonTreeAttention
    from vllm_medusa.attention.triton_unified import UnifiedTreeAttention

    cpu = torch.device("cpu")
    vicuna, smollm, llama, fp8 = model_specs(capability)
    attention = TritonTreeAttention(cpu, 256, _H100_PROCESSORS)
    for spec in (
        vicuna,
        replace(vicuna, rows=(64,) * 8, bases=(3,) * 8),
        replace(vicuna, rows=(129,), layout="hnd", trees="random"),
        smollm,
        replace(llama, cache_dtype=fp8),
        replace(llama, head_size=256, sliding_window=1024, soft_cap=50.0),
        replace(vicuna, head_size=80, dtype=torch.float16, sliding_window=300),
        replace(vicuna, dtype=torch.float32, layout="transposed"),
    ):
        case = make_case(spec, cpu)
        case.attend(attention)
    for spec in (vicuna, smollm):
        case = make_case(spec, cpu)
        case.attend(UnifiedTreeAttention(case.trees.ancestors[0]))


if __name__ == "__main__":
    main(_launch_everything)
