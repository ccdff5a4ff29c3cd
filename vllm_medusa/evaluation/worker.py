# SPDX-License-Identifier: Apache-2.0
"""What an evaluation's engine does: `python -m vllm_medusa.evaluation.worker`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_medusa.calibration.machine import Load
from vllm_medusa.calibration.steps import Request, run_requests
from vllm_medusa.engines.jobs import serve
from vllm_medusa.prompts import conversation_ids

if TYPE_CHECKING:
    from vllm import LLM

# Sequences that are scored at once: their logits over the vocabulary lie in memory.
_SCORED_AT_ONCE = 4
_WARM_UP_TOKENS = 8


def tokenize(llm: LLM, conversations: list[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids of each conversation, up to where the answer begins."""
    tokenizer = llm.get_tokenizer()
    return [conversation_ids(tokenizer, messages) for messages in conversations]


def run(
    llm: LLM,
    requests: list[dict[str, Any]],
    concurrency: int,
    tree: list[Any] | None = None,
) -> dict[str, Any]:
    """A closed-loop run as a dict, with the load and CPU seconds of the machine.

    `tree`, if given, are the arguments of `ChangingTrees.use_tree`.
    """
    if tree is not None:
        llm.collective_rpc("use_tree", args=tuple(tree))
    before = Load.now()
    result = run_requests(llm, [Request(**r) for r in requests], concurrency)
    return result.as_dict() | {"machine": Load.now().since(before)}


def score(llm: LLM, sequences: list[list[list[int]]]) -> list[dict[str, list[Any]]]:
    """Log-probability and rank of each output token: one pass over each sequence.

    `sequences` are pairs of token ids, of a prompt and of an output.
    """
    from vllm import SamplingParams, TokensPrompt

    # One token must be generated; 0 asks for no token but the prompt's own.
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    scores: list[dict[str, list[Any]]] = []
    for start in range(0, len(sequences), _SCORED_AT_ONCE):
        part = sequences[start : start + _SCORED_AT_ONCE]
        inputs = [TokensPrompt(prompt_token_ids=prompt + ids) for prompt, ids in part]
        outputs = llm.generate(inputs, params, use_tqdm=False)
        for (prompt, ids), output in zip(part, outputs, strict=True):
            rows = output.prompt_logprobs[len(prompt) :]
            found = [row[token] for row, token in zip(rows, ids, strict=True)]
            scores.append(
                {
                    "logprobs": [float(entry.logprob) for entry in found],
                    "ranks": [int(entry.rank) for entry in found],
                }
            )
    return scores


def warm_up(llm: LLM) -> None:
    """One short answer: the first run of an engine is slower."""
    ids = conversation_ids(llm.get_tokenizer(), [{"role": "user", "content": "Hello!"}])
    run_requests(llm, [Request("warm-up", ids, _WARM_UP_TOKENS)], 1)


if __name__ == "__main__":
    serve({"tokenize": tokenize, "run": run, "score": score}, warm_up)
