# SPDX-License-Identifier: Apache-2.0
"""The stage that fills the stores of answers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace

from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.prompts import read_prompts
from vllm_medusa.train.answer_checks import needed_context
from vllm_medusa.train.answers import read_answers
from vllm_medusa.train.generate import (
    GenerateOptions,
    Generator,
    fill_store,
    is_filled,
)
from vllm_medusa.train.options import TrainOptions
from vllm_medusa.train.origin import include
from vllm_medusa.train.progress import Progress
from vllm_medusa.train.store import AnswerStore


def training_store(options: TrainOptions) -> AnswerStore:
    """The answers to train on and to hold out."""
    keep_states = not options.compute.is_live
    return AnswerStore(options.work / "answers", keep_states=keep_states)


def evaluation_store(options: TrainOptions) -> AnswerStore:
    """The answers to the evaluation prompts."""
    keep_states = not options.compute.is_live
    return AnswerStore(options.work / "evaluation", keep_states=keep_states)


def make_answers(
    options: TrainOptions, progress: Progress, *, may_generate: bool
) -> None:
    """Fill the stores of training and evaluation answers.

    The engine only starts if something is missing.

    Args:
        options: of the run.
        progress: shows it.
        may_generate: whether an engine may start in this process.

    Raises:
        ConfigError: a file is missing or malformed, the store is of another model or
            of other included answers, or an answer is not the model's or does not
            fit its context.
        CheckpointError: the model's config or tokenizer can't be loaded.
        UnsupportedError: something is missing and no engine may start.
    """
    prompts = _training_prompts(options)
    included = [answer for path in options.answers for answer in read_answers(path)]
    questions = None
    if options.evaluation_prompts is not None:
        source = options.evaluation_prompts.name
        texts = read_prompts(options.evaluation_prompts)
        questions = [(text, source) for text in texts]
    store = training_store(options)
    name = options.base_name or options.model
    include(store, included, name)
    generate = _with_context(options, store)
    if not is_filled(store, generate, prompts):
        _check_may_generate(store, may_generate)
        progress.stage("answers", generate.num_tokens)
        progress.advance_to(store.num_tokens)
        _fill(store, options.model, generate, prompts, progress)
    if questions is None:
        return
    # float32 as the benchmarks serve it, and greedy.
    exact = replace(
        generate,
        temperatures=(0.0,),
        dtype="float32",
        num_tokens=len(questions) * generate.max_answer_tokens + 1,
    )
    store = evaluation_store(options)
    include(store, (), name)
    if not is_filled(store, exact, questions):
        _check_may_generate(store, may_generate)
        progress.stage("evaluation answers", exact.num_tokens)
        _fill(store, options.model, exact, questions, progress)


def _with_context(options: TrainOptions, store: AnswerStore) -> GenerateOptions:
    """The options of the engine, in whose context all that lack states find room."""
    generate = options.generate
    ranges = store.ranges_without_states(generate.round_size)
    lacking = [answer for begin, end in ranges for answer in store.answers[begin:end]]
    needed = needed_context(store.answers, lacking, options.model)
    if needed <= generate.context:
        return generate
    if generate.max_model_len is not None:
        raise ConfigError(
            f"an answer with {needed - 1} tokens does not fit max_model_len "
            f"{generate.max_model_len}: raise it to {needed}, or leave it out"
        )
    return replace(generate, max_model_len=needed)


def _training_prompts(options: TrainOptions) -> list[tuple[str, str]] | None:
    """Pairs of prompt and source; None where the model and templates give them."""
    if not options.prompts and not options.answers:
        return None
    return [
        (prompt, path.name) for path in options.prompts for prompt in read_prompts(path)
    ]


def _check_may_generate(store: AnswerStore, may_generate: bool) -> None:
    if may_generate:
        return
    raise UnsupportedError(
        f"{store.folder} lacks answers or their hidden states, and several processes "
        "can't share the engine that makes them: run the same command in one process "
        "with --answers-only first"
    )


def _fill(
    store: AnswerStore,
    model: str,
    options: GenerateOptions,
    prompts: Sequence[tuple[str, str]] | None,
    progress: Progress,
) -> None:
    generator = Generator(model, options)
    fill_store(store, generator, prompts, on_round=progress.advance_to)
    generator.close()
    del generator
    gc.collect()
