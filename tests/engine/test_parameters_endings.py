# SPDX-License-Identifier: Apache-2.0
"""What ends a text or keeps it from ending, with logprobs up to the end.

Lengths, stop tokens and stop strings alone are in test_endings.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.sampling_params import RepetitionDetectionParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import greedy
from tests.engine.support.models import EOS
from tests.engine.support.parameters import Comparison, Requests, compared
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((10, 32), (2, 18))
REASONS = {
    "stop string": {"stop"},
    "stop string included": {"stop"},
    "end of text": {"stop"},
    "end of text ignored": {"length"},
    "end of text after min_tokens": {"stop"},
    "repetition": {"repetition"},
}
"""Why the requests of each case end."""


def _options(name: str, index: int, pieces: list[str]) -> dict[str, Any]:
    """Options of a case; `pieces` are the greedy text token by token."""
    # Two tokens may be half a character each; then another stop is as good.
    start = 5 + index % 6
    stop = "".join(pieces[start : start + 2]).replace("\ufffd", "") or "a"
    # The model never says EOS by itself.
    end = {"logit_bias": {EOS: 9.0}}
    return {
        "stop string": {"stop": [stop]},
        "stop string included": {"stop": [stop], "include_stop_str_in_output": True},
        "end of text": {**end, "ignore_eos": False},
        "end of text ignored": {**end, "ignore_eos": True},
        "end of text after min_tokens": {
            **end,
            "ignore_eos": False,
            "min_tokens": 8 + index % 5,
        },
        "repetition": {
            # The penalty makes the text repeat itself.
            "repetition_penalty": 0.5,
            "repetition_detection": RepetitionDetectionParams(
                max_pattern_size=4, min_pattern_size=1, min_count=3
            ),
        },
    }[name]


@pytest.fixture(scope="module")
def comparison(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Comparison]:
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    cases = {
        name: [
            greedy(
                LENGTH,
                logprobs=2,
                **_options(name, index, [tokenizer.decode(t) for t in text]),
            )
            for index, text in enumerate(plain[:COUNT])
        ]
        for name in REASONS
    }
    requests = Requests.of(prompts[:COUNT], LENGTH, cases)
    with compared(llama.path, requests, tmp_path_factory.mktemp("heads")) as comparison:
        yield comparison


@pytest.mark.parametrize("name", REASONS)
def test_alone(comparison: Comparison, name: str) -> None:
    comparison.check_alone(name)
    assert comparison.num_changed(name) > 0
    reasons = [o.outputs[0].finish_reason for o in comparison.expected[name]]
    assert set(reasons) & REASONS[name]


def test_mixed(comparison: Comparison) -> None:
    comparison.check_mixed()
