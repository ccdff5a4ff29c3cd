# SPDX-License-Identifier: Apache-2.0
"""Compile the launches of the cascade's tree part for a GPU; prints JSON.

Usage: python -m tests.unit.attention.compile_cascade CAPABILITY
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.triton_compile import main


def _launch_everything(capability: int) -> None:
    from tests.unit.attention.cases import make_case
    from tests.unit.attention.prepared import Prepared
    from tests.unit.attention.specs import model_specs
    from vllm_medusa.attention.cascade import CascadeTreeAttention
    from vllm_medusa.attention.prefix_reference import ReferencePrefix

    cpu = torch.device("cpu")
    vicuna, smollm, llama, fp8 = model_specs(capability)
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
    main(_launch_everything)
