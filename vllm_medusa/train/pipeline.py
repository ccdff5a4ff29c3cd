# SPDX-License-Identifier: Apache-2.0
"""The stages of a training run, from prompts to a folder with heads."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import torch

from vllm_medusa import __version__
from vllm_medusa.errors import UnsupportedError
from vllm_medusa.files import remove_leftovers
from vllm_medusa.locks import exclusive
from vllm_medusa.train.answering import make_answers
from vllm_medusa.train.curve import check_matplotlib
from vllm_medusa.train.data import load_data
from vllm_medusa.train.fresh_heads import fresh_heads
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.measure import (
    accuracies,
    before_loops,
    rank_of_truth,
    tokens_per_step,
)
from vllm_medusa.train.options import TrainOptions
from vllm_medusa.train.processes import Processes
from vllm_medusa.train.progress import Progress
from vllm_medusa.train.publish import publish
from vllm_medusa.train.store import Corpus
from vllm_medusa.train.trainer import Trainer
from vllm_medusa.tree import TokenTree, chain, optimal

TREE_SIZES = (2, 3, 4, 5, 6, 8, 16, 32, 64)
"""Nodes of the trees whose tokens per step are reported."""


def train(
    options: TrainOptions,
    progress: Progress,
    command: Sequence[str] = (),
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Run all stages; return what recipe.json holds.

    Args:
        options: of the run.
        progress: shows it.
        command: for the recipe.
        processes: this one and the others, all of which call this; None: alone, on a
            GPU if there is one.

    Raises:
        ConfigError: bad options or input files.
        CheckpointError: the base model can't be used.
        UnsupportedError: answers are missing and there are several processes.
        OutputError: there is no room to write, or another run is at work in
            `options.work`.
    """
    check_matplotlib()
    processes = processes or Processes.alone()
    started = time.time()
    with ExitStack() as stack:

        def prepare() -> None:
            stack.enter_context(_at_work(options))
            make_answers(options, progress, may_generate=processes.count == 1)

        processes.first(prepare)
        answered = time.time()
        data = load_data(options, processes)
        heads = fresh_heads(
            options.heads,
            data.lm_head,
            data.tokens,
            options.compute.dtype,
            options.fit,
        ).to(processes.device)
        trainer = Trainer(
            heads,
            data.batches,
            data.tokens,
            data.held_out,
            options.fit,
            options.work / "training.pt",
            options.compute,
            processes,
        )
        progress.stage("training", trainer.num_steps)
        trainer.fit(lambda step, _: progress.advance_to(step))
        trained = time.time()
        with trainer.whole_heads():
            reports = measure_all(heads, data.held_out, data.evaluation)
            recipe = {
                "command": list(command),
                "date": datetime.date.today().isoformat(),
                "base_model": options.base_name or options.model,
                "stage": "medusa1",
                "data": data.counts,
                "generate": asdict(options.generate),
                "heads": asdict(options.heads),
                "fit": asdict(options.fit),
                "compute": asdict(options.compute) | {"processes": processes.count},
                "steps": trainer.num_steps,
                "seconds": {
                    "answers": round(answered - started),
                    "training": round(trained - answered),
                },
                "versions": versions(),
                "measured": dict(
                    zip(("held_out", "evaluation"), reports, strict=False)
                ),
            }
            processes.first(lambda: _publish(options, trainer, recipe))
    return recipe


def answer_only(
    options: TrainOptions, progress: Progress, processes: Processes
) -> None:
    """Run the stage of the answers alone, for a run of several processes to go on.

    Raises:
        ConfigError: bad options or input files.
        UnsupportedError: there are several processes already.
        OutputError: as `train`.
    """
    if processes.count > 1:
        raise UnsupportedError(
            f"answers are made in one process, not {processes.count}: start "
            "--answers-only without a launcher"
        )
    with _at_work(options):
        make_answers(options, progress, may_generate=True)


@contextmanager
def _at_work(options: TrainOptions) -> Iterator[None]:
    with exclusive(options.work, wait=False):
        for folder in (".", "answers", "evaluation"):
            remove_leftovers(options.work / folder)
        yield


def _publish(options: TrainOptions, trainer: Trainer, recipe: dict[str, Any]) -> None:
    reports = list(recipe["measured"].values())
    shipped = mean_table([report["accuracy_before_loops"] for report in reports])
    publish(
        options.output,
        trainer.heads,
        trainer.history,
        base_name=recipe["base_model"],
        accuracies={
            "accuracy": shipped,
            "num_positions": sum(r["positions_before_loops"] for r in reports),
            "source": source_text(options),
        },
        tree=optimal(shipped, options.tree_nodes),
        recipe=recipe,
    )


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
