# SPDX-License-Identifier: Apache-2.0
"""Blocks that went to another tier and came back hold the keys and values of the text.

Many of them were filled by trees: rows of rejected nodes lay there first, and accepted
ones were moved.
"""

from __future__ import annotations

import pytest
from vllm.config import KVTransferConfig

from tests.engine.conftest import PLAIN_TOKENS, TinyModel
from tests.engine.support.engines import (
    engine,
    generate,
    greedy,
    metrics,
    stats,
    token_ids,
)
from tests.engine.support.offload import CopyWorker
from tests.runner import sample
from vllm_medusa.errors import UnsupportedError

pytestmark = pytest.mark.engine

MEDUSA_TREE = "optimal:12"
COUNT = sample(24, 6)
# Tokens that become part of a prompt.
HALF = sample(48, 26)


def offloading() -> KVTransferConfig:
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={
            "spec_name": "CopyingSpec",
            "spec_module_path": "tests.engine.support.offload",
            "cpu_bytes_to_use": 256 << 20,
            # Generated tokens, too.
            "offload_prompt_only": False,
        },
    )


def test_text_after_reload(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """With too few blocks for all requests, so that some are preempted meanwhile."""
    prompts, plain = prompts[:COUNT], plain[:COUNT]
    stored, loaded = CopyWorker.num_stored, CopyWorker.num_loaded
    with engine(
        llama.path,
        {"model": llama.heads, "tree": MEDUSA_TREE},
        num_gpu_blocks_override=sample(24, 15),
        max_num_seqs=8,
        enable_prefix_caching=True,
        kv_transfer_config=offloading(),
    ) as llm:
        assert token_ids(generate(llm, prompts, greedy(PLAIN_TOKENS))) == plain
        assert stats(llm)["moved"] > COUNT
        if COUNT > 10:
            assert metrics(llm)["vllm:num_preemptions"] > 0
        # The last copies are submitted with the next step, and hold their blocks.
        generate(llm, [[5], [6]], greedy(2))
        # The blocks on the device are forgotten; those of the other tier are not.
        assert llm.reset_prefix_cache()
        longer = [p + text[:HALF] for p, text in zip(prompts, plain, strict=True)]
        outputs = generate(llm, longer, greedy(PLAIN_TOKENS - HALF))
    assert token_ids(outputs) == [text[HALF:] for text in plain]
    assert CopyWorker.num_stored - stored > COUNT
    assert CopyWorker.num_loaded - loaded > COUNT
    beyond = sum(
        (output.num_cached_tokens or 0) > len(prompt)
        for prompt, output in zip(prompts, outputs, strict=True)
    )
    assert beyond > COUNT // 3, "generated blocks must have come back"


def test_other_connectors(llama: TinyModel) -> None:
    """Refused before the model loads."""
    config = KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")
    with (
        pytest.raises(UnsupportedError, match=r"ExampleConnector.*OffloadingConnector"),
        engine(
            llama.path,
            {"model": llama.heads, "tree": MEDUSA_TREE},
            kv_transfer_config=config,
        ),
    ):
        pass
