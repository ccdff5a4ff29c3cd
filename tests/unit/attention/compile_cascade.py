# SPDX-License-Identifier: Apache-2.0
"""Compile the launches of the cascade's tree part for a GPU; prints JSON.

Usage: python -m tests.unit.attention.compile_cascade CAPABILITY
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import torch

from tests.triton_compile import only_compile


def _launch_everything(capability: int) -> None:
    from tests.unit.attention.cases import make_case
    from tests.unit.attention.prepared import Prepared
    from tests.unit.attention.specs import Spec
    from vllm_medusa.attention.cascade import CascadeTreeAttention
    from vllm_medusa.attention.prefix_reference import ReferencePrefix

    cpu = torch.device("cpu")
    vicuna = Spec(
        rows=(64,),
        bases=(3,),
        num_heads=32,
        num_kv_heads=32,
        head_size=128,
        dtype=torch.bfloat16,
        trees="fixed",
    )
    smollm = replace(vicuna, rows=(9,), num_heads=9, num_kv_heads=3, head_size=64)
    llama = replace(vicuna, num_heads=32, num_kv_heads=8)
    # A100 has no conversion from e4m3.
    fp8 = torch.float8_e4m3fn if capability > 80 else torch.float8_e5m2
    attention = CascadeTreeAttention(ReferencePrefix(), 8, cpu)
    for spec in (
        vicuna,
        replace(vicuna, rows=(64,) * 8, bases=(3,) * 8),
        replace(vicuna, rows=(129,), layout="hnd", trees="random"),
        smollm,
        replace(llama, cache_dtype=fp8),
        replace(llama, rows=(64,) * 8, bases=(3,) * 8, head_size=256, soft_cap=50.0),
        replace(vicuna, head_size=80, dtype=torch.float16),
        replace(vicuna, rows=(64,) * 8, bases=(3,) * 8, dtype=torch.float32),
    ):
        make_case(spec, cpu).attend(Prepared(attention))


if __name__ == "__main__":
    _capability = int(sys.argv[1])
    _launches = only_compile(_capability)
    _launch_everything(_capability)
    print(json.dumps([asdict(launch) for launch in _launches]))
