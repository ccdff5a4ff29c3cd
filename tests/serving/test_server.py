# SPDX-License-Identifier: Apache-2.0
"""`vllm serve BASE --speculative-model medusa:HEADS`, asked as users ask it.

All in one file, so that all tests share one server with Medusa and a plain one.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import openai
import pytest

from tests.serving.support.hostile import LIKE_PLAIN, MALFORMED_OPTIONS
from tests.serving.support.mixed import SAME
from tests.serving.support.requests import Answer, Ask, answer, assert_same
from tests.serving.support.server import NAME, Server

RUNNING = "vllm:num_requests_running"
GENERATED = "vllm:generation_tokens_total"
DRAFTS = "vllm:spec_decode_num_drafts_total"


def ask_all(
    server: Server, asks: list[Ask], streams: list[bool] | None = None
) -> list[Answer]:
    """Send requests all at once; `streams` says of each whether to stream it."""

    async def gather() -> list[Answer]:
        async with server.async_client() as client:
            return await asyncio.gather(
                *(
                    answer(client, ask, stream=stream)
                    for ask, stream in zip(
                        asks, streams or [False] * len(asks), strict=True
                    )
                )
            )

    return asyncio.run(gather())


def ask_in_turn(server: Server, asks: list[Ask]) -> list[Answer]:
    """Send requests one after another."""
    return [ask_all(server, [ask])[0] for ask in asks]


def change(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before[name]


def test_mixed_requests_at_once(medusa_server: Server, plain_server: Server) -> None:
    """All kinds beside each other, whole and streamed, as from plain vLLM."""
    asks = list(SAME.values())
    expected = ask_all(plain_server, asks)
    before = medusa_server.metrics()
    kinds = [False] * len(asks) + [True] * len(asks)
    found = ask_all(medusa_server, asks * 2, kinds)
    for name, mine, theirs in zip([*SAME, *SAME], found, expected * 2, strict=True):
        print(name)  # shown if the next line fails
        assert_same(mine, theirs)
    streamed = dict(zip(SAME, found[len(asks) :], strict=True))
    for name in ("chat", "completion of text", "response"):
        parts = streamed[name].choices[0].parts
        # Accepted nodes come in the same part as the token after them.
        assert 1 < parts < streamed[name].completion_tokens
    assert medusa_server.metrics()[DRAFTS] > before[DRAFTS]


def test_typical_acceptance_is_lossy_and_repeatable(medusa_server: Server) -> None:
    def ask(**options: Any) -> Ask:
        return Ask.chat(
            "Whatever.", temperature=1.5, seed=1, max_tokens=60, vllm_xargs=options
        )

    typical = {"medusa_acceptance": "typical", "medusa_epsilon": 0.01}
    first, second, exact = ask_in_turn(
        medusa_server, [ask(**typical), ask(**typical), ask()]
    )
    assert_same(first, second)
    assert first.choices[0].token_ids != exact.choices[0].token_ids


def test_a_client_that_goes_away_frees_its_place(
    medusa_server: Server, plain_server: Server
) -> None:
    """Streams and whole answers, running and waiting, of all endpoints."""
    many_tokens = 3000
    long = [
        make(f"A long answer, number {number}.", max_tokens=many_tokens, **fields)
        for number in range(6)
        for make, fields in (
            (Ask.chat, {}),
            (Ask.chat, {"n": 2, "temperature": 1.0, "seed": number}),
            (Ask.completion, {"temperature": 1.0}),
            (Ask.response, {}),
        )
    ]
    before = medusa_server.metrics()

    async def leave() -> None:
        async with medusa_server.async_client() as client:
            tasks = [
                asyncio.create_task(answer(client, ask, stream=index % 3 > 0))
                for index, ask in enumerate(long)
            ]
            # Until the engine is full and others wait: 16 sequences run at once.
            while (await asyncio.to_thread(medusa_server.metrics))[RUNNING] < 16:
                await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(error, asyncio.CancelledError) for error in ended)

    asyncio.run(leave())
    medusa_server.wait_for_metric(RUNNING, 0.0)
    after = medusa_server.metrics()
    assert after["vllm:num_requests_waiting"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0.0
    assert change(before, after, GENERATED) < len(long) * many_tokens
    asks = list(SAME.values())[:6]
    for mine, theirs in zip(
        ask_all(medusa_server, asks), ask_all(plain_server, asks), strict=True
    ):
        assert_same(mine, theirs)


PATHS = {
    "chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "completions": {"prompt": "hello"},
    "responses": {"input": "hello"},
}


def refused(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a body that must get a 400; return the error."""
    # As json.dumps writes it: with NaN and Infinity, which JSON does not have.
    reply = server.post(f"/v1/{path}", json.dumps(body))
    if reply.headers["content-type"].startswith("text/event-stream"):
        # What vLLM finds in the values themselves it finds when the stream has begun.
        first, _, rest = reply.text.partition("\n")
        assert rest.strip() == "data: [DONE]"
        content = json.loads(first.removeprefix("data: "))
    else:
        assert reply.status_code == 400, reply.text
        content = reply.json()
    error: dict[str, Any] = content["error"]
    assert error["type"] in ("BadRequestError", "Bad Request")
    assert error["code"] == 400
    return error


@pytest.mark.parametrize("path", PATHS)
def test_hostile_options_get_a_400(medusa_server: Server, path: str) -> None:
    for name, (options, words) in MALFORMED_OPTIONS.items():
        # vLLM breaks off a stream of "responses" whose values it refuses.
        for stream in (False, True) if path != "responses" else (False,):
            print(name, "stream" if stream else "whole")
            fields = {"model": NAME, "vllm_xargs": options, "stream": stream}
            error = refused(medusa_server, path, {**PATHS[path], **fields})
            assert words in error["message"]
            assert len(error["message"]) < 3000
    assert medusa_server.get("/health").status_code == 200
    assert medusa_server.metrics()[RUNNING] == 0


def test_what_vllm_refuses_it_still_refuses(
    medusa_server: Server, plain_server: Server
) -> None:
    bodies = {
        name: {"model": NAME, "prompt": "hello", "max_tokens": 4, **fields}
        for name, fields in LIKE_PLAIN.items()
    }
    for name, body in bodies.items():
        print(name)
        mine, theirs = (
            server.post("/v1/completions", json.dumps(body))
            for server in (medusa_server, plain_server)
        )
        assert mine.status_code == theirs.status_code
        assert 400 <= mine.status_code < 500
        assert mine.json()["error"]["message"] == theirs.json()["error"]["message"]
    with pytest.raises(openai.BadRequestError, match="it must be a number above 0"):
        medusa_server.client().chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "hello"}],
            extra_body={"vllm_xargs": {"medusa_delta": -1}},
        )
    assert medusa_server.get("/health").status_code == 200


def test_counters(medusa_server: Server) -> None:
    """The counters of /metrics against what each request says of its own steps."""
    medusa_server.wait_for_metric(RUNNING, 0.0)
    before = medusa_server.metrics()
    without_tree = {"medusa_num_speculative_tokens": 0}
    asks = [Ask.chat(f"Count these, {i}.", max_tokens=40) for i in range(8)]
    asks += [Ask.chat(f"{i}?", vllm_xargs=without_tree) for i in range(3)]
    answers = ask_all(medusa_server, asks)
    medusa_server.wait_for_metric(
        GENERATED, before[GENERATED] + sum(a.completion_tokens for a in answers)
    )
    after = medusa_server.metrics()

    steps = [a.metrics["speculative_decoding"] for a in answers[:8]]
    accepted = [n for own in steps for n in own["per_step_accepted"]]
    name = "vllm:spec_decode_num_{}_total"
    for kind, count in (
        ("drafts", len(accepted)),
        ("draft_tokens", sum(own["num_draft_tokens"] for own in steps)),
        ("accepted_tokens", sum(accepted)),
    ):
        assert change(before, after, name.format(kind)) == count > 0
    for position in range(8):
        label = name.format("accepted_tokens_per_pos") + f'{{position="{position}"}}'
        assert change(before, after, label) == sum(n > position for n in accepted)
    # A request's first token comes from its prompt; every later step adds a token to
    # the accepted ones. The last may accept more than the request still wanted.
    for own, of_request in zip(steps, answers, strict=False):
        tokens = 1 + own["num_accepted_draft_tokens"] + own["num_spec_steps"]
        assert 0 <= tokens - of_request.completion_tokens < 4

    # Every token comes from a tree or from a step without one, Medusa's own say.
    trees = change(before, after, "vllm:medusa_tokens_per_step_count")
    assert trees == len(accepted)
    steps_without = {
        name: change(before, after, name)
        for name in after
        if name.startswith("vllm:medusa_steps_without_tree_total")
    }
    of_trees = change(before, after, "vllm:medusa_tokens_per_step_sum")
    generated = change(before, after, GENERATED)
    assert of_trees + sum(steps_without.values()) == generated
    label = 'vllm:medusa_steps_without_tree_total{reason="request"}'
    # The first token of each comes from its prompt.
    assert steps_without[label] == sum(a.completion_tokens - 1 for a in answers[8:])


def test_a_line_in_the_log(medusa_server: Server) -> None:
    """At an interval of a second; it is told where there was something to tell."""
    seen = len(medusa_server.log_text())
    line = re.compile(
        r"Engine 000: Medusa: \d\.\d\d tokens per tree, \d\.\d nodes per tree, "
        r"accepted by depth: ([\d.]+% )*[\d.]+%, [\d.]+ trees/s"
    )
    end = time.monotonic() + 60
    while not line.search(medusa_server.log_text()[seen:]):
        assert time.monotonic() < end, medusa_server.log_text()[seen:]
        ask_all(medusa_server, [Ask.chat("Something to tell.", max_tokens=100)])


def test_prefix_cache_as_in_plain_vllm(
    medusa_server: Server, plain_server: Server
) -> None:
    """A prompt again, and a second turn that holds the answer to the first."""
    prompt = [3 + (7 * i) % 300 for i in range(200)]
    salt = {"cache_salt": str(time.time_ns())}
    counts = []
    for server in (medusa_server, plain_server):
        before = server.metrics()
        ask = Ask.completion(prompt, max_tokens=70, **salt)
        first, again = ask_in_turn(server, [ask] * 2)
        turn = prompt + first.choices[0].token_ids + [50, 60]
        (second,) = ask_in_turn(server, [Ask.completion(turn, max_tokens=8, **salt)])
        after = server.metrics()
        assert first.choices[0].token_ids == again.choices[0].token_ids
        counts.append(
            (
                [answer.cached_tokens for answer in (first, again, second)],
                change(before, after, "vllm:prefix_cache_queries_total"),
                change(before, after, "vllm:prefix_cache_hits_total"),
                second.choices[0].token_ids,
            )
        )
    assert counts[0] == counts[1]
    # All full blocks of 32 tokens before the last token; 269 tokens have their keys.
    assert counts[0][0] == [0, 192, 256]


def test_health_and_models(medusa_server: Server) -> None:
    assert medusa_server.get("/health").status_code == 200
    assert medusa_server.get("/version").json()["version"]
    (model,) = medusa_server.client().models.list().data
    assert model.id == NAME
