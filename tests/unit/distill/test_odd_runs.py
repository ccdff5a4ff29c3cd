# SPDX-License-Identifier: Apache-2.0
"""Runs whose model or prompts are not as one would wish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.distill.toy import END, NoProgress, ToyEngine, options, use
from vllm_medusa.distill.requests import Request
from vllm_medusa.distill.run import distill
from vllm_medusa.distill.source_option import SourceOption
from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import read_answers


def test_empty_answers_do_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last shard is of one prompt, which the model has nothing to say to."""

    class Silent(ToyEngine):
        def complete(self, requests: Sequence[Request]) -> list[list[int]]:
            answers = super().complete(requests)
            return [[END]] * len(requests) if self._calls in (2, 3) else answers

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Say {n}\n" for n in range(30)))
    wanted = options(
        tmp_path / "out",
        sources=(SourceOption("prompts", str(prompts)),),
        num_prompts=11,
    )
    use(monkeypatch, Silent())
    manifest = distill(wanted, NoProgress())
    assert [shard["prompts"] for shard in manifest.shards] == [10, 1]
    assert manifest.shards[1]["positions"] == {"prompts:prompts.txt": 13}
    assert manifest.totals()["left_out"] == {"empty answers": 2}


def test_a_model_that_says_nothing_more_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(ToyEngine):
        def complete(self, requests: Sequence[Request]) -> list[list[int]]:
            answers = super().complete(requests)
            return answers if self._calls == 1 else [[END]] * len(requests)

    use(monkeypatch, Silent())
    wanted = options(
        tmp_path / "out", sources=(SourceOption("templates"),), num_prompts=50
    )
    with pytest.raises(ConfigError, match=r"of 100 prompts none .*100 empty answers"):
        distill(wanted, NoProgress())


def test_halves_of_characters_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = tmp_path / "chats.json"
    messages = [
        {"from": "system", "value": "Cut \ud83d"},
        {"from": "human", "value": "Smile \ud83d"},
        {"from": "human", "value": "Again \ude00"},
    ]
    chats.write_text(json.dumps([{"conversations": messages}]))
    use(monkeypatch, ToyEngine(whole=1.0))
    wanted = options(
        tmp_path / "out", sources=(SourceOption("sharegpt", str(chats)),), turns=2
    )
    distill(wanted, NoProgress())
    first, second = read_answers(tmp_path / "out")
    assert (first.prompt, second.prompt) == ("Smile \ufffd", "Again \ufffd")
    assert not any(0xD800 <= t < 0xE000 for t in second.prompt_token_ids)
