# SPDX-License-Identifier: Apache-2.0
"""Which options of `vllm-medusa train` have an effect beside which others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_medusa.errors import ConfigError

_ENGINE = ("answer_tokens", "round", "generate_dtype", "max_model_len")
_GENERATION = ("tokens", "temperatures", "written_prompts", *_ENGINE)
_ARCHITECTURE = (
    "num_heads",
    "num_layers",
    "block",
    "intermediate_size",
    "projection",
    "rank",
    "draft_vocab",
)
_MEDUSA2 = (
    "schedule",
    "heads",
    "heads_epochs",
    "base_loss",
    "heads_weight",
    "backbone_learning_rate",
    "head_learning_rate_multiple",
    "adapters",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_lm_head",
    "untie",
    "gradient_checkpointing",
    "max_perplexity_increase",
    "min_agreement",
    "measure_every",
    "export_last_good",
    "save_dtype",
)


@dataclass(frozen=True)
class _Default:
    """Stands for an option's default, to tell it from the same value given."""

    value: Any


@dataclass(frozen=True)
class _Rule:
    """Options without effect where a condition holds.

    Attributes:
        options: their names in the namespace.
        holds: the condition.
        reason: the condition in words.
    """

    options: tuple[str, ...]
    holds: Callable[[argparse.Namespace], bool]
    reason: str


def _is_medusa2(args: argparse.Namespace) -> bool:
    return bool(args.stage == "medusa2")


def _answers_are_given(args: argparse.Namespace) -> bool:
    return not _is_medusa2(args) and bool(args.answers) and not args.prompts


def _has_given_heads(args: argparse.Namespace) -> bool:
    return _is_medusa2(args) and args.heads is not None


_RULES = (
    _Rule(_MEDUSA2, lambda args: not _is_medusa2(args), "--stage medusa1"),
    _Rule((*_GENERATION, "sampled_vocab"), _is_medusa2, "--stage medusa2"),
    _Rule(
        ("hidden_states",),
        lambda args: _is_medusa2(args) and args.hidden_states == "cached",
        "--stage medusa2, whose states are live",
    ),
    _Rule(
        ("tokens", "temperatures"),
        _answers_are_given,
        "--answers and without --prompts: no answers are made",
    ),
    _Rule(
        ("written_prompts",),
        lambda args: bool(args.answers or args.prompts),
        "--answers or --prompts: the model writes no prompts",
    ),
    _Rule(
        _ENGINE,
        lambda args: (
            _answers_are_given(args)
            and args.hidden_states == "live"
            and args.evaluation_prompts is None
        ),
        "--answers and live states alone: no engine starts",
    ),
    _Rule(
        ("sequence_length",),
        lambda args: not _is_medusa2(args) and args.hidden_states == "cached",
        "cached states: rows are packed with --hidden-states live",
    ),
    _Rule(_ARCHITECTURE, _has_given_heads, "--heads, which have a form already"),
    _Rule(
        ("intermediate_size", "dropout"),
        lambda args: not _has_given_heads(args) and args.block != "mlp",
        "another --block than mlp",
    ),
    _Rule(
        ("rank",),
        lambda args: args.projection != "low_rank",
        "another --projection than low_rank",
    ),
    _Rule(
        ("heads_epochs", "learning_rate"),
        lambda args: (
            _is_medusa2(args)
            and (args.schedule == "one-stage" or args.heads is not None)
        ),
        "--schedule one-stage or --heads: heads are never trained alone",
    ),
    _Rule(
        ("lora_rank", "lora_alpha", "lora_dropout"),
        lambda args: args.adapters == "full",
        "--adapters full",
    ),
)


def mark_defaults(parser: argparse.ArgumentParser) -> None:
    """Make the defaults of options with rules known from values that are given."""
    for option in {option for rule in _RULES for option in rule.options}:
        default = parser.get_default(option)
        # Of None and False whatever is given differs.
        if default is not None and default is not False:
            parser.set_defaults(**{option: _Default(default)})


def check_scope(args: argparse.Namespace) -> None:
    """Refuse options that were given without effect, and put the defaults in.

    Args:
        args: parsed after `mark_defaults`; changed in place.

    Raises:
        ConfigError: naming the option, and beside what it has no effect.
    """
    given = set()
    for option, value in vars(args).items():
        if isinstance(value, _Default):
            setattr(args, option, value.value)
        elif value is not None and value is not False:
            given.add(option)
    for rule in _RULES:
        for option in rule.options:
            if option in given and rule.holds(args):
                name = option.replace("_", "-")
                raise ConfigError(
                    f"--{name} has no effect with {rule.reason}: leave --{name} out"
                )
