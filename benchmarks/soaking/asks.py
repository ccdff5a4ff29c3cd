# SPDX-License-Identifier: Apache-2.0
"""What a soak test asks: prompts and parameters, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams

Params = dict[str, Any]
"""Arguments of vLLM's SamplingParams, as JSON has them."""


@dataclass(frozen=True)
class Ask:
    """A prompt with its parameters.

    `is_exact`: Medusa must answer what plain vLLM answers. Otherwise an answer is a
    draw that nothing repeats, and only its shape is checked.
    """

    name: str
    prompt: list[int]
    params: Params
    is_exact: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; `Ask(**…)` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class Material:
    """What prompts are made of.

    Attributes:
        texts: token ids of texts; a prompt is the beginning of one.
        prefixes: token ids that several prompts begin with.
        vocab_size: of the model.
        longest_prompt, longest_answer: in tokens.
        stops: strings that some requests stop at.
    """

    texts: Sequence[list[int]]
    prefixes: Sequence[list[int]]
    vocab_size: int
    longest_prompt: int
    longest_answer: int
    stops: Sequence[str]


def sampling_params(params: Params, **options: Any) -> SamplingParams:
    """vLLM's object for `params`, with further `options`."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    values = {**params, **options}
    if values.get("logit_bias"):
        # JSON has no numbers for keys.
        values["logit_bias"] = {int(k): v for k, v in values["logit_bias"].items()}
    if structure := values.get("structured_outputs"):
        values["structured_outputs"] = StructuredOutputsParams(**structure)
    return SamplingParams(**values)


def make_asks(material: Material, count: int, seed: int) -> list[Ask]:
    """`count` asks of all kinds; the same ones for the same arguments."""
    rng = Random(seed)
    names = list(KINDS)
    weights = [KINDS[name][0] for name in names]
    asks = []
    for number in range(count):
        # Every kind at least once, as far as `count` goes.
        kind = names[number] if number < len(names) else rng.choices(names, weights)[0]
        _, is_exact, draw = KINDS[kind]
        params = {
            "temperature": 0.0,
            "max_tokens": _length(rng, material.longest_answer),
            "ignore_eos": rng.random() < 0.5,
            **draw(rng, material),
        }
        asks.append(Ask(f"{number}-{kind}", _prompt(rng, material), params, is_exact))
    return asks


def _length(rng: Random, longest: int) -> int:
    """Mostly short, sometimes as long as can be."""
    return max(1, min(longest, round(rng.expovariate(3 / longest))))


def _prompt(rng: Random, material: Material) -> list[int]:
    prefix = rng.choice(material.prefixes) if rng.random() < 0.5 else []
    room = material.longest_prompt - len(prefix)
    text = rng.choice(material.texts)
    return [*prefix, *text[: rng.randint(1, min(room, len(text)))]]


def _tokens(rng: Random, material: Material, count: int) -> list[int]:
    # The first ids are often special tokens.
    return rng.sample(
        range(min(16, material.vocab_size // 8), material.vocab_size), count
    )


def _drawn(rng: Random, material: Material) -> Params:
    return {"temperature": round(rng.uniform(0.5, 1.2), 2)}


def _seeded(rng: Random, material: Material) -> Params:
    params = {**_drawn(rng, material), "seed": rng.randrange(2**31)}
    if rng.random() < 0.5:
        params["top_p"] = round(rng.uniform(0.7, 0.99), 2)
    if rng.random() < 0.5:
        params["top_k"] = rng.randint(2, 40)
    return params


def _penalties(rng: Random, material: Material) -> Params:
    return {
        "repetition_penalty": round(rng.uniform(1.0, 1.3), 2),
        "frequency_penalty": round(rng.uniform(-0.2, 0.5), 2),
        "presence_penalty": round(rng.uniform(-0.2, 0.5), 2),
    }


def _structured(rng: Random, material: Material) -> Params:
    structure = rng.choice(
        (
            {"choice": ["a red apple", "a red pear", "green plums", "blue"]},
            {"regex": r"([a-z]{2,4}-[0-9]{1,2} ?){2,3}"},
            {"regex": "[a-z0-9 .,]{20,60}"},
            {
                "json": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "pattern": "^[a-z]{1,3}$"},
                        "size": {"enum": [1, 23]},
                    },
                    "required": ["name", "size"],
                    "additionalProperties": False,
                }
            },
        )
    )
    return {"structured_outputs": structure, "ignore_eos": False}


def _typical(rng: Random, material: Material) -> Params:
    extra = {
        "medusa_acceptance": "typical",
        "medusa_epsilon": round(rng.uniform(0.05, 0.3), 2),
        "medusa_first_token": rng.choice(("drawn", "greedy")),
    }
    return {**_drawn(rng, material), "extra_args": extra}


def _nodes(count: int) -> Params:
    return {"extra_args": {"medusa_num_speculative_tokens": count}}


Draw = Callable[[Random, Material], Params]

KINDS: dict[str, tuple[int, bool, Draw]] = {
    "greedy": (10, True, lambda rng, m: {}),
    "logprobs": (3, True, lambda rng, m: {"logprobs": rng.randint(0, 5)}),
    "prompt_logprobs": (1, True, lambda rng, m: {"prompt_logprobs": rng.randint(0, 2)}),
    "penalties": (3, True, _penalties),
    "stop_string": (
        3,
        True,
        lambda rng, m: {
            "stop": rng.sample(list(m.stops), 2),
            "include_stop_str_in_output": rng.random() < 0.5,
        },
    ),
    "stop_token": (2, True, lambda rng, m: {"stop_token_ids": _tokens(rng, m, 8)}),
    "min_tokens": (
        1,
        True,
        lambda rng, m: {
            "min_tokens": 8,
            "max_tokens": 8 + _length(rng, m.longest_answer - 8),
            "ignore_eos": False,
            "stop_token_ids": _tokens(rng, m, 8),
        },
    ),
    "bad_words": (
        1,
        True,
        lambda rng, m: {"bad_words": [stop for stop in m.stops if stop.isalpha()]},
    ),
    "logit_bias": (
        1,
        True,
        lambda rng, m: {
            "logit_bias": {
                str(t): round(rng.uniform(-5, 5), 1) for t in _tokens(rng, m, 8)
            }
        },
    ),
    "allowed_tokens": (
        1,
        True,
        lambda rng, m: {"allowed_token_ids": _tokens(rng, m, m.vocab_size // 2)},
    ),
    "seeded": (6, True, _seeded),
    "seeded_penalties": (
        2,
        True,
        lambda rng, m: {**_seeded(rng, m), **_penalties(rng, m)},
    ),
    "seeded_min_p": (
        1,
        True,
        lambda rng, m: {**_drawn(rng, m), "seed": rng.randrange(2**31), "min_p": 0.05},
    ),
    "seeded_n": (2, True, lambda rng, m: {**_seeded(rng, m), "n": rng.randint(2, 3)}),
    "structured": (3, True, _structured),
    "tree_off": (2, True, lambda rng, m: _nodes(0)),
    "tree_cut": (2, True, lambda rng, m: _nodes(rng.randint(1, 6))),
    "seeded_tree_off": (1, True, lambda rng, m: {**_seeded(rng, m), **_nodes(0)}),
    "drawn": (2, False, _drawn),
    "drawn_n": (1, False, lambda rng, m: {**_drawn(rng, m), "n": rng.randint(2, 3)}),
    "typical": (3, False, _typical),
}
"""Weight of each kind of request, whether its answer is that of plain vLLM, and how its
parameters are drawn. Together they reach every path through sampling."""
