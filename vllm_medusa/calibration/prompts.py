# SPDX-License-Identifier: Apache-2.0
"""What a calibration asks: held-out prompts, with the name of their task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_medusa.errors import ConfigError
from vllm_medusa.evaluation.prompts import read_evaluation_prompts
from vllm_medusa.prompts import read_prompts

PROMPTS = (
    "Explain to a ten-year-old why the sky is blue.",
    "Write a polite e-mail asking a landlord to repair a broken heater.",
    "Write a Python function that checks whether a string is a palindrome.",
    "What are the main differences between a bicycle and a motorcycle?",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
    "Tell a short story about a lighthouse keeper who finds a message in a bottle.",
    "List five healthy breakfasts and say why each of them is healthy.",
    "Summarise how a bill becomes a law in a parliamentary democracy.",
)
"""Everyday prompts, when the user gives none."""


@dataclass(frozen=True)
class TaskPrompt:
    """One prompt: a conversation to go on with, and its task if it has one."""

    messages: tuple[dict[str, str], ...]
    task: str | None = None


def calibration_prompts(path: Path | None, by_task: bool) -> list[TaskPrompt]:
    """Read the prompts of `path`, or take `PROMPTS`.

    A file of JSON lines (.jsonl) holds prompts as `vllm-medusa evaluate` takes them,
    with their tasks under "category" or "task"; any other file a prompt a line.

    Raises:
        ConfigError: the file can't be read, is empty or malformed; or a prompt has no
            task and `by_task` asks for them.
    """
    if path is not None and path.suffix == ".jsonl":
        prompts = [
            TaskPrompt(prompt.messages, prompt.category)
            for prompt in read_evaluation_prompts(path)
        ]
    else:
        texts = PROMPTS if path is None else read_prompts(path)
        prompts = [TaskPrompt(({"role": "user", "content": text},)) for text in texts]
    without = sum(prompt.task is None for prompt in prompts)
    if by_task and without:
        raise ConfigError(
            f"--by-task, but {without} of {len(prompts)} prompts have no task: give "
            '--prompts FILE.jsonl with a "category" in every line'
        )
    return prompts
