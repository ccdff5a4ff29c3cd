# SPDX-License-Identifier: Apache-2.0
"""Parameters that exclude or favour tokens, by the text before a row or by its place.

Bad words end where their last token would stand, min_tokens ends at a position, and a
user's logits processor looks at what it likes: all of it often inside a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import step_ends
from tests.engine.support.engines import greedy
from tests.engine.support.parameters import Comparison, Requests, compared
from tests.engine.support.processors import Avoid, AvoidOnV2, Favour
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((12, 32), (4, 16))
PROCESSORS = sample([Avoid, Favour], [AvoidOnV2])
NAMES = (
    "bad_words",
    "bad words of one token",
    "logit_bias",
    "allowed_token_ids",
    "min_tokens",
    "logits processor",
    *sample(("logits processor of a request",), ()),
)


class Word(NamedTuple):
    """Three tokens in the middle of a greedy text, which starts at token `start`."""

    start: int
    text: str
    first: str
    """Its first token alone."""


def _words(llama: TinyModel, plain: list[list[int]]) -> dict[int, Word]:
    """The first word of each greedy text that the tokenizer splits as the text has it,
    by index of the text."""
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    words = {}
    for index, text in enumerate(plain):
        for start in range(3, LENGTH - 6):
            tokens = text[start : start + 3]
            word = Word(start, tokenizer.decode(tokens), tokenizer.decode(tokens[0]))
            # vLLM drops blanks at the beginning.
            spelled = tokenizer.encode(word.text.lstrip(), add_special_tokens=False)
            if spelled == tokens and word.first.strip():
                words[index] = word
                break
    return words


class Chosen:
    """Prompts in whose greedy text there is a word of three tokens."""

    def __init__(
        self, llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
    ) -> None:
        words = _words(llama, plain)
        self.indices = list(words)[:COUNT]
        assert len(self.indices) == COUNT
        self.prompts = [prompts[i] for i in self.indices]
        self.texts = [plain[i][:LENGTH] for i in self.indices]
        self.words = [words[i] for i in self.indices]

    def params(self, name: str, index: int) -> SamplingParams:
        """Parameters of the case `name` for the prompt `index`."""
        text, word = self.texts[index], self.words[index]
        start = word.start
        often = max(set(text), key=text.count)
        options: dict[str, Any] = {
            "bad_words": {"bad_words": [word.text]},
            "bad words of one token": {"bad_words": ["e", "ba", "Z", word.first]},
            "logit_bias": {"logit_bias": {often: -50.0, 77: 3.0}},
            "allowed_token_ids": {
                "allowed_token_ids": [t for t in range(3, 300) if t % 3 != index % 3]
            },
            # The stop token is due at `start`, but the text must be longer.
            "min_tokens": {
                "stop_token_ids": [text[start], text[start + 1], often],
                "min_tokens": start + 4 + index % 4,
            },
            "logits processor": {"extra_args": {"avoid": 2}},
            "logits processor of a request": {"extra_args": {"favour": 4.0}},
        }[name]
        return greedy(LENGTH, logprobs=3 if index % 2 else None, **options)


@pytest.fixture(scope="module")
def chosen(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> Chosen:
    return Chosen(llama, prompts, plain)


@pytest.fixture(scope="module")
def comparison(
    llama: TinyModel, chosen: Chosen, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comparison]:
    cases = {name: [chosen.params(name, i) for i in range(COUNT)] for name in NAMES}
    with compared(
        llama.path,
        Requests.of(chosen.prompts, LENGTH, cases),
        tmp_path_factory.mktemp("heads"),
        logits_processors=PROCESSORS,
    ) as comparison:
        yield comparison


@pytest.mark.parametrize("name", NAMES)
def test_alone(comparison: Comparison, name: str) -> None:
    comparison.check_alone(name)
    assert comparison.num_changed(name) > COUNT // 4


@pytest.mark.smoke
def test_mixed(comparison: Comparison) -> None:
    comparison.check_mixed()


def test_bad_words_begin_inside_paths(comparison: Comparison, chosen: Chosen) -> None:
    """The first two tokens of an excluded word come from a tree that also had a row
    where the third was due: the row's own path, not the text so far, excludes it."""
    inside = 0
    for index, word in enumerate(chosen.words):
        params = chosen.params("bad_words", index)
        (ends,) = step_ends(comparison.llm, [chosen.prompts[index]], params)
        inside += not {word.start + 1, word.start + 2} & set(ends)
    assert inside > 0


def test_min_tokens_end_inside_paths(comparison: Comparison, chosen: Chosen) -> None:
    inside = 0
    for index in range(COUNT):
        params = chosen.params("min_tokens", index)
        (ends,) = step_ends(comparison.llm, [chosen.prompts[index]], params)
        inside += params.min_tokens not in ends
    assert inside > 0
    reasons = {o.outputs[0].finish_reason for o in comparison.expected["min_tokens"]}
    assert "stop" in reasons
