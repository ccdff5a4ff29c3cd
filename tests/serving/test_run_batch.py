# SPDX-License-Identifier: Apache-2.0
"""Batch files by `vllm run-batch --speculative-model`, and `LLM.chat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers
from tests.engine.support.engines import engine, stats
from tests.serving.support.processes import run_vllm
from tests.serving.support.server import MAX_MODEL_LEN

_GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
QUESTIONS = {f"q{n}": f"What about number {n}?" for n in range(12)}


def messages(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def line(custom_id: str, *, url: str = "/v1/chat/completions", **body: Any) -> str:
    return json.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": url,
            "body": {"model": "tiny", "return_token_ids": True, **_GREEDY, **body},
        }
    )


def test_a_batch_file(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Each line as from plain vLLM's `LLM.chat`; a bad one has an error of its own."""
    seeded = {"temperature": 1.0, "seed": 5}
    refused = {"vllm_xargs": {"medusa_acceptance": "rejection"}}
    lines = [
        *(line(name, messages=messages(text)) for name, text in QUESTIONS.items()),
        line("seeded", messages=messages("By chance?"), **seeded),
        line("refused", messages=messages("No."), **refused),
        line("unknown", url="/v1/nothing", messages=messages("No.")),
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    ended = run_vllm(
        "run-batch",
        f"--input-file={source}",
        f"--output-file={target}",
        f"--model={tiny_model.path}",
        "--served-model-name=tiny",
        f"--speculative-model=medusa:{tiny_model.heads}?tree=optimal:8",
        "--dtype=float32",
        "--enforce-eager",
        f"--max-model-len={MAX_MODEL_LEN}",
        "--block-size=32",
        f"--kv-cache-memory-bytes={64 << 20}",
        "--generation-config=vllm",
        log=tmp_path / "log",
    )
    assert ended.code == 0, ended.output[-3000:]
    found = {
        entry["custom_id"]: entry
        for entry in map(json.loads, target.read_text().splitlines())
    }
    assert len(found) == len(lines)

    refusal = found.pop("refused")
    assert refusal["response"]["status_code"] == 400
    assert "start it with acceptance=rejection" in json.dumps(refusal["error"])
    unknown = found.pop("unknown")
    assert unknown["response"]["status_code"] == 400
    assert "/v1/nothing" in unknown["error"]

    with engine(tiny_model.path, max_model_len=MAX_MODEL_LEN) as llm:
        texts = [messages(text) for text in (*QUESTIONS.values(), "By chance?")]
        params = [SamplingParams(**_GREEDY)] * len(QUESTIONS)
        params.append(SamplingParams(**{**_GREEDY, **seeded}))
        plain = llm.chat(texts, params, use_tqdm=False)
    assert len(plain) == len(found)
    for name, output in zip((*QUESTIONS, "seeded"), plain, strict=True):
        assert found[name]["error"] is None
        (choice,) = found[name]["response"]["body"]["choices"]
        assert choice["token_ids"] == list(output.outputs[0].token_ids)
        assert choice["message"]["content"] == output.outputs[0].text


def test_chat_offline(tiny_model: TinyModel) -> None:
    """`LLM.chat` and `LLM.generate` of text, many at once, as from plain vLLM."""
    chats = [
        [*messages(text), {"role": "assistant", "content": "So?"}, *messages("Go on.")]
        for text in QUESTIONS.values()
    ]
    params = [
        SamplingParams(temperature=index % 3 * 0.7, seed=index, max_tokens=40)
        for index in range(len(chats))
    ]
    # Large enough for all prompts at once: plain vLLM 0.32 on a CPU can't prefill
    # those of seeded requests in chunks.
    sizes = {"max_model_len": MAX_MODEL_LEN, "max_num_batched_tokens": MAX_MODEL_LEN}
    found = []
    for medusa in (None, {"model": tiny_model.heads, "tree": "optimal:8"}):
        with engine(tiny_model.path, medusa, **sizes) as llm:
            of_chats = llm.chat(chats, params, use_tqdm=False)
            of_texts = llm.generate(list(QUESTIONS.values()), params, use_tqdm=False)
            found.append((answers(of_chats), answers(of_texts)))
            if medusa is not None:
                assert stats(llm)["accepted"] > 0
    assert found[0] == found[1]
