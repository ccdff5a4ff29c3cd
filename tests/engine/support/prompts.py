# SPDX-License-Identifier: Apache-2.0
"""Prompts of many lengths."""

from __future__ import annotations

import random

import torch
from transformers import PreTrainedTokenizerBase


def random_prompts(
    count: int, vocab_size: int, *, shortest: int = 1, longest: int = 100, seed: int = 0
) -> list[list[int]]:
    """Prompts of random tokens (no special ones) and random lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    return [
        torch.randint(3, vocab_size, (int(length),), generator=generator).tolist()
        for length in lengths
    ]


_TASKS = (
    "Explain {topic} to a child.",
    "Write a short story about {topic}.",
    "List five facts about {topic}.",
    "What do most people get wrong about {topic}?",
    "Write a letter to a friend about {topic}.",
    "Compare {topic} with {other}.",
    "Write a Python function about {topic}.",
    "Why does {topic} matter?",
    "Give me three questions about {topic} and answer them.",
    "Translate 'I like {topic}' into French.",
)
_TOPICS = (
    "the tides",
    "a lighthouse",
    "sorting numbers",
    "old maps",
    "bees",
    "the moon",
    "bread",
    "prime numbers",
    "trains at night",
    "glass",
    "a quiet library",
    "volcanoes",
    "chess",
    "the alphabet",
    "rain",
    "bicycles",
    "paper",
    "the number zero",
    "deep lakes",
    "clocks",
)
_CONTEXT = (
    "Note {number}: {topic} came up again today, and so did {other}; "
    "nobody could say which of the two had been there first. "
)


def chat_prompts(
    tokenizer: PreTrainedTokenizerBase, count: int, *, seed: int = 0
) -> list[list[int]]:
    """Chat prompts, no two alike: most are short, one in twelve has 200 to 600 tokens.

    The long ones put notes before the question, so that they share no prefix.
    """
    rng = random.Random(seed)
    pairs = [(task, topic) for task in _TASKS for topic in _TOPICS]
    if count > len(pairs):
        raise ValueError(f"there are only {len(pairs)} prompts, not {count}")
    rng.shuffle(pairs)
    prompts = []
    for index, (task, topic) in enumerate(pairs[:count]):
        other = rng.choice([t for t in _TOPICS if t != topic])
        sentences = rng.randrange(6, 18) if index % 12 == 0 else index % 5 // 4
        notes = "".join(
            _CONTEXT.format(number=rng.randrange(1000), topic=topic, other=other)
            for _ in range(sentences)
        )
        question = notes + task.format(topic=topic, other=other)
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=True,
        )
        prompts.append(list(encoded["input_ids"]))
    return prompts
