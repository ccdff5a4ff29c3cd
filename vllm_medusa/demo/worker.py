# SPDX-License-Identifier: Apache-2.0
"""One engine in its own process: `python -m vllm_medusa.demo.worker`.

The first line on stdin holds the arguments of `vllm.LLM` as JSON, every later one
`{"prompt", "max_tokens"}`. Each line is answered by one on stdout: `{"seconds"}` for
the first, `answer(...)` for the others. A failure is `{"error"}`, bad input that the
user can mend `{"refusal"}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import IO, TYPE_CHECKING, Any

from vllm_medusa.calibration.steps import speculation_counters
from vllm_medusa.errors import MedusaError

if TYPE_CHECKING:
    from vllm import LLM

_WARM_UP_TOKENS = 8


def private_stdout() -> IO[str]:
    """Return the real stdout, line-buffered; what others print goes to stderr.

    Called before vLLM is imported, so that its own processes inherit the change.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def prompt_token_ids(llm: LLM, prompt: str) -> list[int]:
    """Return the ids of `prompt` as a user's turn, or as it is without a template."""
    tokenizer: Any = llm.get_tokenizer()
    if getattr(tokenizer, "chat_template", None) is None:
        return list(tokenizer.encode(prompt))
    turn = [{"role": "user", "content": prompt}]
    return list(
        tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_dict=False
        )
    )


def answer(llm: LLM, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Answer `prompt` greedily.

    Returns the text, the token ids, the wall time in seconds (the prompt's own
    computation included), and what vLLM counted: drafts and accepted tokens.
    """
    from vllm import SamplingParams, TokensPrompt

    inputs = TokensPrompt(prompt_token_ids=prompt_token_ids(llm, prompt))
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


def main() -> None:
    """Load the engine, then answer prompts until stdin ends."""
    replies = private_stdout()

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")

    arguments = json.loads(sys.stdin.readline())
    try:
        from vllm import LLM

        start = time.perf_counter()
        llm = LLM(**arguments)
        answer(llm, "Hello!", _WARM_UP_TOKENS)
        reply({"seconds": time.perf_counter() - start})
        for line in sys.stdin:
            reply(answer(llm, **json.loads(line)))
    except MedusaError as error:
        reply({"refusal": str(error)})
        sys.exit(2)
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
