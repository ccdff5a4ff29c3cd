# SPDX-License-Identifier: Apache-2.0
"""Requests of every kind, each with an answer that plain vLLM gives, too."""

from __future__ import annotations

from tests.serving.support.requests import Ask

_TOKENS = [40, 77, 103, 151, 33, 298, 260, 71]
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,3}$"}},
    "required": ["name"],
    "additionalProperties": False,
}
_BY_SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "thing", "schema": _SCHEMA, "strict": True},
}

SAME: dict[str, Ask] = {
    # greedy
    "chat": Ask.chat("Tell me of the sea."),
    "completion of text": Ask.completion("Once upon a time there was"),
    "completion of tokens": Ask.completion(_TOKENS),
    "response": Ask.response("What is a lighthouse?"),
    "two prompts": Ask.completion(["one of two", "the other of the two"]),
    "echo": Ask.completion("an echo of this", echo=True, logprobs=1),
    "until the end of text": Ask.chat("short?", ignore_eos=False, max_tokens=120),
    # seeded
    "seed": Ask.chat("By chance?", temperature=0.9, seed=7),
    "seed, top-p, top-k": Ask.completion(
        _TOKENS, temperature=1.3, seed=11, top_p=0.9, top_k=30
    ),
    "seeded response": Ask.response("By chance again?", temperature=0.8, seed=3),
    "n": Ask.chat("Three of them.", temperature=1.0, seed=5, n=3),
    # the tree of a request
    "no tree": Ask.chat(
        "Without a tree.", vllm_xargs={"medusa_num_speculative_tokens": 0}
    ),
    "no tree, seeded": Ask.completion(
        "Without a tree",
        temperature=1.0,
        seed=2,
        vllm_xargs={"medusa_num_speculative_tokens": 0},
    ),
    "two nodes": Ask.response(
        "With two nodes.", vllm_xargs={"medusa_num_speculative_tokens": 2}
    ),
    # at temperature 0 every scheme is exact
    "typical": Ask.chat(
        "Typical?",
        vllm_xargs={"medusa_acceptance": "typical", "medusa_epsilon": 0.2},
    ),
    # structured output
    "json schema": Ask.chat(
        "A name.", response_format=_BY_SCHEMA, ignore_eos=False, max_tokens=60
    ),
    "regex": Ask.completion(
        "a code: ",
        structured_outputs={"regex": "[a-z]{3}-[0-9]{2}"},
        ignore_eos=False,
        temperature=1.0,
        seed=4,
    ),
    "choice": Ask.chat(
        "Yes or no?", structured_outputs={"choice": ["yes", "no"]}, ignore_eos=False
    ),
    # ends
    "stop": Ask.chat("Stop at a letter.", stop=["e", "o"], max_tokens=60),
    "stop, included": Ask.completion(
        _TOKENS, stop=["a", "t"], include_stop_str_in_output=True, max_tokens=60
    ),
    "stop tokens": Ask.completion("end at one of", stop_token_ids=[66, 70, 80, 90]),
    # scores
    "logprobs": Ask.chat("Scores, please.", logprobs=True, top_logprobs=3),
    "logprobs of a completion": Ask.completion(
        _TOKENS, logprobs=2, temperature=0.7, seed=13
    ),
    "logprobs of a response": Ask.response(
        "Scores?", include=["message.output_text.logprobs"], top_logprobs=2
    ),
    # logits
    "penalties": Ask.chat(
        "Penalties.", presence_penalty=1.2, frequency_penalty=0.4, max_tokens=48
    ),
    "repetition penalty": Ask.completion(
        "again and again and", repetition_penalty=1.3, temperature=0.8, seed=6
    ),
    # vLLM refuses these two beside its own speculative decoding
    "min-p": Ask.chat("Not the rare ones.", min_p=0.1, temperature=1.0, seed=8),
    "logit bias": Ask.completion("a bias", logit_bias={"70": 4.0, "80": -100.0}),
    "bad words": Ask.completion("not these", bad_words=["a", "e"], min_tokens=10),
    "allowed tokens": Ask.chat("Of these.", allowed_token_ids=list(range(60, 100))),
}
"""By name; the longest has 48 tokens where its end is not open."""
