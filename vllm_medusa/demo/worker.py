# SPDX-License-Identifier: Apache-2.0
"""One of the demo's engines in its own process: `python -m vllm_medusa.demo.worker`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm_medusa.calibration.steps import speculation_counters
from vllm_medusa.engines.jobs import serve
from vllm_medusa.prompts import user_turn_ids

if TYPE_CHECKING:
    from vllm import LLM

_WARM_UP_TOKENS = 8


def answer(llm: LLM, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Answer `prompt` greedily.

    Returns the text, the token ids, the wall time in seconds (the prompt's own
    computation included), and what vLLM counted: drafts and accepted tokens.
    """
    from vllm import SamplingParams, TokensPrompt

    inputs = TokensPrompt(prompt_token_ids=user_turn_ids(llm.get_tokenizer(), prompt))
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    before = speculation_counters(llm)
    start = time.perf_counter()
    (output,) = llm.generate([inputs], sampling, use_tqdm=False)
    seconds = time.perf_counter() - start
    after = speculation_counters(llm)
    return {
        "text": output.outputs[0].text,
        "token_ids": list(output.outputs[0].token_ids),
        "seconds": seconds,
        "drafts": after["drafts"] - before["drafts"],
        "accepted": after["accepted"] - before["accepted"],
    }


if __name__ == "__main__":
    serve({"answer": answer}, lambda llm: answer(llm, "Hello!", _WARM_UP_TOKENS))
