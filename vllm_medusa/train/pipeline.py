# SPDX-License-Identifier: Apache-2.0
"""The stages of a training run, from prompts to a folder with heads."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import platform
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch

from vllm_medusa import __version__
from vllm_medusa.errors import ConfigError
from vllm_medusa.files import remove_leftovers
from vllm_medusa.locks import exclusive
from vllm_medusa.train.answers import Answer, read_answers
from vllm_medusa.train.base import make_spec, read_lm_head
from vllm_medusa.train.curve import check_matplotlib
from vllm_medusa.train.generate import Generator, fill_store, is_filled
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.measure import (
    accuracies,
    before_loops,
    rank_of_truth,
    tokens_per_step,
)
from vllm_medusa.train.options import TrainOptions
from vllm_medusa.train.prompts import read_prompts
from vllm_medusa.train.publish import publish
from vllm_medusa.train.store import AnswerStore, Corpus
from vllm_medusa.train.trainer import Trainer
from vllm_medusa.train.vocabulary import most_frequent_tokens
from vllm_medusa.tree import TokenTree, chain, optimal

TREE_SIZES = (2, 3, 4, 5, 6, 8, 16, 32, 64)
"""Nodes of the trees whose tokens per step are reported."""


class Progress(Protocol):
    """Shows how far a stage has come."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` units."""

    def advance_to(self, done: int) -> None:
        """The stage has done so many units."""


def train(
    options: TrainOptions, progress: Progress, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Run all stages; return what recipe.json holds.

    Raises:
        ConfigError: bad options or input files.
        CheckpointError: the base model can't be used.
        OutputError: there is no room to write, or another run is at work in
            `options.work`.
    """
    check_matplotlib()
    with exclusive(options.work, wait=False):
        for folder in (".", "answers", "evaluation"):
            remove_leftovers(options.work / folder)
        return _train(options, progress, command)


def _train(
    options: TrainOptions, progress: Progress, command: Sequence[str]
) -> dict[str, Any]:
    started = time.time()
    make_answers(options, progress)
    answered = time.time()
    store = AnswerStore(options.work / "answers")
    corpus, held_out, counts = split(store, options)
    evaluation = None
    if options.evaluation_prompts is not None:
        evaluation = AnswerStore(options.work / "evaluation").load()
    lm_head = read_lm_head(options.model)
    spec = make_spec(options.heads, lm_head)
    token_map = most_frequent_tokens(
        corpus.tokens, len(lm_head), options.heads.draft_vocab
    )
    torch.manual_seed(options.fit.seed)
    heads = TrainableHeads(spec, token_map, lm_head, dropout=options.fit.dropout)
    if torch.cuda.is_available():
        heads.cuda()
    trainer = Trainer(
        heads, corpus, held_out, options.fit, options.work / "training.pt"
    )
    progress.stage("training", trainer.num_steps)
    trainer.fit(lambda step, _: progress.advance_to(step))
    trained = time.time()
    reports = measure_all(heads, held_out, evaluation)
    shipped = mean_table([report["accuracy_before_loops"] for report in reports])
    recipe = {
        "command": list(command),
        "date": datetime.date.today().isoformat(),
        "base_model": options.base_name or options.model,
        "data": counts,
        "generate": asdict(options.generate),
        "heads": asdict(options.heads),
        "fit": asdict(options.fit),
        "steps": trainer.num_steps,
        "seconds": {
            "answers": round(answered - started),
            "training": round(trained - answered),
        },
        "versions": versions(),
        "measured": dict(zip(("held_out", "evaluation"), reports, strict=False)),
    }
    publish(
        options.output,
        heads,
        trainer,
        base_name=options.base_name or options.model,
        accuracies={
            "accuracy": shipped,
            "num_positions": sum(r["positions_before_loops"] for r in reports),
            "source": source_text(options),
        },
        tree=optimal(shipped, options.tree_nodes),
        recipe=recipe,
    )
    return recipe


def make_answers(options: TrainOptions, progress: Progress) -> None:
    """Fill the stores of training and evaluation answers.

    The engine only starts if something is missing.
    """
    prompts = None
    if options.prompts:
        prompts = [
            (prompt, path.name)
            for path in options.prompts
            for prompt in read_prompts(path)
        ]
    included = [answer for path in options.answers for answer in read_answers(path)]
    questions = None
    if options.evaluation_prompts is not None:
        name = options.evaluation_prompts.name
        questions = [(text, name) for text in read_prompts(options.evaluation_prompts)]
    store = AnswerStore(options.work / "answers")
    if not store.answers:
        store.add(included)
    generate = options.generate
    if not is_filled(store, generate, prompts):
        progress.stage("answers", generate.num_tokens)
        progress.advance_to(store.num_tokens)
        generator = Generator(options.model, generate)
        fill_store(store, generator, prompts, on_round=progress.advance_to)
        _close(generator)
    if questions is None:
        return
    # float32 as the benchmarks serve it, and greedy.
    exact = replace(
        generate,
        temperatures=(0.0,),
        dtype="float32",
        num_tokens=len(questions) * generate.max_answer_tokens + 1,
    )
    store = AnswerStore(options.work / "evaluation")
    if not is_filled(store, exact, questions):
        progress.stage("evaluation answers", len(questions))
        generator = Generator(options.model, exact)
        fill_store(store, generator, questions)
        progress.advance_to(len(store.answers))
        _close(generator)


def _close(generator: Generator) -> None:
    generator.close()
    gc.collect()


def split(
    store: AnswerStore, options: TrainOptions
) -> tuple[Corpus, Corpus, dict[str, Any]]:
    """Training corpus, held-out corpus, and counts for the recipe.

    By a hash of the prompt, so that one prompt never stands on both sides. Answers
    to evaluation prompts are in neither.

    Raises:
        ConfigError: a side is empty.
    """
    forbidden: set[str] = set()
    if options.evaluation_prompts is not None:
        forbidden = {
            _normal(prompt) for prompt in read_prompts(options.evaluation_prompts)
        }
    sides = [_side(answer, forbidden, options.held_out) for answer in store.answers]
    if not {0, 1} <= set(sides):
        raise ConfigError(
            f"{len(store.answers)} answers are too few to train on and to hold out "
            f"{options.held_out:.1%} of them: generate more, or raise held_out"
        )
    corpus = store.load([side == 1 for side in sides])
    held_out = store.load([side == 0 for side in sides])
    kept = [a for a, side in zip(store.answers, sides, strict=True) if side == 1]
    counts = {
        "training_answers": len(kept),
        "training_tokens": len(corpus),
        "held_out_tokens": len(held_out),
        "excluded_answers": sides.count(2),
        "answers_by_source": dict(Counter(answer.source for answer in kept)),
        "answers_by_temperature": {
            str(t): n for t, n in sorted(Counter(a.temperature for a in kept).items())
        },
    }
    return corpus, held_out, counts


def _normal(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def _side(answer: Answer, forbidden: set[str], held_out: float) -> int:
    """0: held out, 1: trained on, 2: excluded."""
    prompt = _normal(answer.prompt)
    if prompt in forbidden:
        return 2
    return int(zlib.crc32(prompt.encode()) / 2**32 >= held_out)


def measure_all(heads: TrainableHeads, *corpora: Corpus | None) -> list[dict[str, Any]]:
    """Accuracies and tokens per step on each corpus that is there."""
    reports = []
    for corpus in corpora:
        if corpus is None:
            continue
        ranks = rank_of_truth(heads, corpus)
        clean = before_loops(corpus)
        clean_table = accuracies(ranks, clean)
        trees: dict[str, TokenTree] = {
            f"chain:{depth}": chain(depth)
            for depth in range(1, heads.spec.num_heads + 1)
        }
        trees |= {f"optimal:{size}": optimal(clean_table, size) for size in TREE_SIZES}
        reports.append(
            {
                "positions": len(corpus),
                "positions_before_loops": int(clean.sum()),
                "accuracy": accuracies(ranks),
                "accuracy_before_loops": clean_table,
                "tokens_per_step": {
                    name: round(tokens_per_step(ranks, tree), 3)
                    for name, tree in trees.items()
                },
                "tokens_per_step_before_loops": {
                    name: round(tokens_per_step(ranks, tree, clean), 3)
                    for name, tree in trees.items()
                },
            }
        )
    return reports


def mean_table(tables: Sequence[list[list[float]]]) -> list[list[float]]:
    """The mean of accuracy tables [K][ranks], rounded to 5 digits."""
    mean = torch.tensor(tables, dtype=torch.float64).mean(0)
    return [[round(value, 5) for value in row] for row in mean.tolist()]


def source_text(options: TrainOptions) -> str:
    """How the shipped accuracies were measured."""
    held_out = (
        f"answers to {options.held_out:.1%} of the prompts, held out from training"
    )
    if options.evaluation_prompts is None:
        return f"{held_out}; up to where they begin to loop"
    return (
        f"mean of two tables of equal weight: {held_out}, and greedy answers to "
        f"{options.evaluation_prompts.name}, both up to where they begin to loop"
    )


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    found = {"python": platform.python_version(), "vllm-medusa": __version__}
    for name in ("torch", "transformers", "vllm"):
        found[name] = importlib.metadata.version(name)
    return found
