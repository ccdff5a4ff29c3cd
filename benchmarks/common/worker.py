# SPDX-License-Identifier: Apache-2.0
"""One engine in its own process, taking jobs as JSON lines on stdin.

Started by `benchmarks.common.engine_process`, one process per variant, so that
several engines stay loaded and take turns. While it waits for a line it uses no CPU.
The first line holds the arguments of `LLM`; each later one a job; every line is
answered by one line: `{"result": …}` or `{"error": "…"}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from vllm_medusa.calibration.machine import Load
from vllm_medusa.calibration.steps import Request, run_requests, speculation_counters

if TYPE_CHECKING:
    from vllm import LLM


def private_stdout() -> IO[str]:
    """The real stdout, kept for answers; fd 1 goes to stderr with vLLM's logs.

    Called before vLLM is imported, so that the engine's own processes inherit it.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def tokenize(llm: LLM, prompts: list[str], system: str | None = None) -> list[Any]:
    """Token ids of each prompt as a user's turn in the model's chat template."""
    tokenizer: Any = llm.get_tokenizer()
    rows = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        rows.append(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        )
    return rows


def run(
    llm: LLM,
    requests: list[dict[str, Any]],
    concurrency: int,
    timing: bool = False,
) -> dict[str, Any]:
    """A closed-loop run as a dict, with the load and CPU seconds of the machine.

    With `timing`, also what the worker's `medusa_timing` counted once the first
    prompts were done.
    """

    def read_timing() -> Any:
        return llm.collective_rpc("medusa_timing")[0]

    before = Load.now()
    result = run_requests(
        llm,
        [Request(**r) for r in requests],
        concurrency,
        on_prompts_done=read_timing if timing else None,
    )
    answer = result.as_dict() | {"machine": Load.now().since(before)}
    return answer | ({"timing": read_timing()} if timing else {})


def generate(
    llm: LLM, requests: list[dict[str, Any]], with_tokens: bool = False
) -> dict[str, Any]:
    """`LLM.generate` over the whole batch, as fast as the engine takes it.

    With `with_tokens` the answers' token ids come back too.
    """
    from vllm import SamplingParams, TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=r["prompt_token_ids"]) for r in requests]
    parameters = [
        SamplingParams(
            temperature=0.0,
            max_tokens=r["max_tokens"],
            ignore_eos=r.get("ignore_eos", False),
        )
        for r in requests
    ]
    counters = speculation_counters(llm)
    before = Load.now()
    start = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - start
    machine = Load.now().since(before)
    after = speculation_counters(llm)
    token_ids = [list(output.outputs[0].token_ids) for output in outputs]
    return {
        "seconds": seconds,
        "tokens": sum(len(ids) for ids in token_ids),
        "token_ids": token_ids if with_tokens else [],
        "counters": {name: after[name] - counters[name] for name in after},
        "machine": machine,
    }


JOBS: dict[str, Callable[..., Any]] = {
    "tokenize": tokenize,
    "run": run,
    "generate": generate,
}


def main() -> None:
    """Load the engine named on the first line, then answer jobs until stdin ends."""
    answers = private_stdout()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    from vllm import LLM

    arguments = json.loads(sys.stdin.readline())
    try:
        start = time.perf_counter()
        llm = LLM(**arguments)
        answer({"result": {"start_seconds": time.perf_counter() - start}})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        raise
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer({"result": JOBS[job.pop("job")](llm, **job)})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
            raise


if __name__ == "__main__":
    main()
