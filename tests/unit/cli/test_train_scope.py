# SPDX-License-Identifier: Apache-2.0
"""Options of `train` that would do nothing are refused."""

from __future__ import annotations

import argparse

import pytest

from vllm_medusa.cli import train
from vllm_medusa.cli.main import main
from vllm_medusa.cli.train_scope import check_scope


def parsed(words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(["model", "--output", "heads", *words.split()])


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("--heads folder", "heads"),
        ("--lora-rank 32", "lora-rank"),  # the default, but given
        ("--max-perplexity-increase 0.1", "max-perplexity-increase"),
        ("--untie", "untie"),
        ("--sequence-length 1024", "sequence-length"),
        ("--answers a --tokens 9", "tokens"),
        ("--prompts p --written-prompts 0.5", "written-prompts"),
        ("--answers a --hidden-states live --round 4", "round"),
        ("--block residual --intermediate-size 32", "intermediate-size"),
        ("--rank 8", "rank"),
        ("--stage medusa2 --hidden-states cached", "hidden-states"),
        ("--stage medusa2 --temperatures 0 1", "temperatures"),
        ("--stage medusa2 --sampled-vocab 9", "sampled-vocab"),
        ("--stage medusa2 --heads h --num-layers 2", "num-layers"),
        ("--stage medusa2 --heads h --heads-epochs 2", "heads-epochs"),
        ("--stage medusa2 --schedule one-stage --learning-rate 1", "learning-rate"),
        ("--stage medusa2 --adapters full --lora-alpha 16", "lora-alpha"),
    ],
)
def test_options_without_effect_are_refused(
    words: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "model", "--output", "heads", *words.split()]) == 2
    assert f"error: --{option} has no effect with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--prompts p --tokens 9 --temperatures 0 --max-model-len 99",
        "--answers a --hidden-states live --sequence-length 512",
        "--answers a --hidden-states live --evaluation-prompts e --round 4",
        "--answers a --generate-dtype float32",
        "--projection low_rank --rank 8 --intermediate-size 32 --dropout 0.1",
        "--stage medusa2 --answers a --hidden-states live --sequence-length 512",
        "--stage medusa2 --answers a --heads h --dropout 0.1 --lora-rank 8",
        "--stage medusa2 --answers a --heads-epochs 2 --learning-rate 1 --num-heads 2",
    ],
)
def test_options_with_effect_are_taken(words: str) -> None:
    args = parsed(words)
    check_scope(args)
    assert args.epochs == 3.0
    assert args.tokens == (9 if "--tokens" in words else 1_000_000)
    assert args.lora_alpha == 16
    assert args.block == "mlp"
