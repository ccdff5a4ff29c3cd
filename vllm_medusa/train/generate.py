# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: the base model answers prompts through vLLM."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vllm_medusa.distill.end_tokens import end_token_ids
from vllm_medusa.distill.templates import template_prompt
from vllm_medusa.distill.user_turns import WRITING_TEMPERATURES, UserWriter
from vllm_medusa.errors import ConfigError
from vllm_medusa.prompts import check_chat_template, user_turn_ids
from vllm_medusa.train.answer_checks import framed
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.capture import WORKER_EXTENSION, assemble
from vllm_medusa.train.store import AnswerStore
from vllm_medusa.vllm_refusal import vllm_refusal

DEFAULT_CONTEXT = 1024
"""Tokens of the engine's context unless it is told, or answers need more."""

LONGEST_WRITTEN_PROMPT = 110
"""Tokens of a prompt that the model writes."""


@dataclass(frozen=True)
class GenerateOptions:
    """How answers are made.

    Attributes:
        num_tokens: stop once the store holds this many answer tokens.
        temperatures: of the answers, each for as many answers; 0 is greedy.
        max_answer_tokens: longest answer.
        round_size: prompts per round; a round is what an interruption can lose.
        written_share: share of prompts written by the model itself, the rest of a
            round comes from templates; only without a prompts file.
        dtype: of the engine, "bfloat16" or "float32".
        max_model_len: context of the engine; None: `DEFAULT_CONTEXT`, or what the
            included answers need.
        max_num_seqs: requests that run at once.
        kv_cache_gib: memory for the KV cache on a CPU; elsewhere vLLM decides.
        seed: of prompts and sampling.

    Raises:
        ConfigError: a value is out of its range.
    """

    num_tokens: int = 1_000_000
    temperatures: tuple[float, ...] = (0.0, 0.7)
    max_answer_tokens: int = 256
    round_size: int = 192
    written_share: float = 0.6
    dtype: str = "bfloat16"
    max_model_len: int | None = None
    max_num_seqs: int = 160
    kv_cache_gib: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_tokens", "max_answer_tokens", "round_size", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1: {getattr(self, name)}")
        if not self.temperatures or not all(0 <= t <= 100 for t in self.temperatures):
            raise ConfigError(
                "temperatures must be numbers from 0 to 100, and at least one: "
                f"{self.temperatures}"
            )
        if not 0 <= self.written_share <= 1:
            raise ConfigError(f"written_share is 0 to 1, not {self.written_share}")
        if self.max_answer_tokens >= self.context:
            raise ConfigError(
                f"max_answer_tokens {self.max_answer_tokens} leaves no room for a "
                f"prompt in a context of {self.context} tokens"
            )

    @property
    def context(self) -> int:
        """Tokens of the engine's context."""
        return DEFAULT_CONTEXT if self.max_model_len is None else self.max_model_len


class Generator:
    """The base model in an engine of this process, with its hidden states kept."""

    def __init__(self, model: str | Path, options: GenerateOptions) -> None:
        # In this process, so that the states need no trip through a socket; Model
        # Runner V1, whose batch layout the capture reads.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        from vllm import LLM

        device: dict[str, Any] = {}
        if not torch.cuda.is_available():
            device["kv_cache_memory_bytes"] = int(options.kv_cache_gib * 2**30)
        self.options = options
        self.model = str(model)
        with vllm_refusal(self.model):
            self.llm = LLM(
                self.model,
                dtype=options.dtype,
                max_model_len=options.context,
                max_num_seqs=options.max_num_seqs,
                enforce_eager=True,
                enable_prefix_caching=False,  # a cached prefix has no hidden states
                disable_log_stats=True,
                seed=options.seed,
                worker_extension_cls=WORKER_EXTENSION,
                **device,
            )
        self.tokenizer = self.llm.get_tokenizer()
        check_chat_template(self.tokenizer)
        self._end_token_ids = end_token_ids(model, self.tokenizer)

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm

    def write_prompts(self, count: int, temperature: float) -> list[str]:
        """Let the model write `count` user turns; the unusable ones are left out."""
        from vllm import SamplingParams

        writer = UserWriter(self.tokenizer, self._end_token_ids, LONGEST_WRITTEN_PROMPT)
        header = writer.header(())
        request = replace(writer.request(header, 0), temperature=temperature)
        # The engine's own seed, so that each is another one.
        sampling = SamplingParams(**(request.sampling() | {"seed": None}))
        outputs = self.llm.generate(
            [{"prompt_token_ids": header.token_ids}] * count, sampling, use_tqdm=False
        )
        texts = (writer.read(header, o.outputs[0].token_ids) for o in outputs)
        return [text for text in texts if text is not None]

    def answer(
        self, prompts: Sequence[tuple[str, str]], temperature: float
    ) -> tuple[list[Answer], list[torch.Tensor]]:
        """Answer (prompt, source) pairs.

        Prompts that leave no room for an answer are left out.

        Returns:
            The answers and the states [num_tokens, H] of each.
        """
        from vllm import SamplingParams

        room = self.options.context - self.options.max_answer_tokens
        framed = [
            (prompt, source, ids)
            for prompt, source in prompts
            if len(ids := user_turn_ids(self.tokenizer, prompt)) <= room
        ]
        sampling = SamplingParams(
            temperature=temperature,
            max_tokens=self.options.max_answer_tokens,
            detokenize=False,
        )
        outputs, captured = self._run([ids for _, _, ids in framed], sampling)
        answers, hidden = [], []
        for (prompt, source, ids), output in zip(framed, outputs, strict=True):
            tokens = list(output.outputs[0].token_ids)
            answers.append(
                Answer(
                    prompt=prompt,
                    answer_token_ids=tokens,
                    prompt_token_ids=ids,
                    source=source,
                    temperature=temperature,
                    finish=output.outputs[0].finish_reason,
                )
            )
            hidden.append(assemble(captured[output.request_id], len(tokens)))
        return answers, hidden

    def states_of(self, answers: Sequence[Answer]) -> list[torch.Tensor]:
        """Hidden states of answers made elsewhere, by one pass over their tokens.

        With one token more each must fit the context.
        """
        from vllm import SamplingParams

        token_ids = [
            answer.prompt_token_ids + answer.answer_token_ids
            for answer in framed(answers, self.model)
        ]
        sampling = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        outputs, captured = self._run(token_ids, sampling, whole_prompt=True)
        hidden = []
        for answer, ids, output in zip(answers, token_ids, outputs, strict=True):
            count = len(answer.answer_token_ids)
            rows = assemble(captured[output.request_id], len(ids))
            hidden.append(rows[-count - 1 : -1])
        return hidden

    def _run(
        self, token_ids: list[list[int]], sampling: Any, whole_prompt: bool = False
    ) -> tuple[list[Any], dict[str, list[tuple[int, torch.Tensor]]]]:
        self.llm.collective_rpc("start_capture", args=(whole_prompt,))
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in token_ids], sampling, use_tqdm=False
        )
        # With tensor parallelism every worker has the same states.
        return outputs, self.llm.collective_rpc("take_captured")[0]


def fill_store(
    store: AnswerStore,
    generator: Generator,
    prompts: Sequence[tuple[str, str]] | None,
    *,
    on_round: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Answer prompts until the store holds `num_tokens`, or the prompts end.

    Answers that came without hidden states get theirs first. Going on after an
    interruption, prompts that the store holds answers to are not asked again.

    Args:
        store: where answers go, round by round.
        generator: the base model.
        prompts: (prompt, source) pairs; None to have them written by the model and
            by templates, without end.
        on_round: called with the store's number of tokens after every round.
    """
    options = generator.options
    for begin, end in store.ranges_without_states(options.round_size):
        store.add_states(begin, generator.states_of(store.answers[begin:end]))
        on_round(store.num_tokens)
    for batch in _rounds(store, generator, prompts):
        if store.num_tokens >= options.num_tokens:
            break
        counts = Counter(answer.temperature for answer in store.answers)
        temperature = min(options.temperatures, key=lambda value: counts[value])
        store.add(*generator.answer(batch, temperature))
        on_round(store.num_tokens)


def is_filled(
    store: AnswerStore,
    options: GenerateOptions,
    prompts: Sequence[tuple[str, str]] | None,
) -> bool:
    """Whether `fill_store` would find nothing to do: then no engine is needed."""
    if store.ranges_without_states(options.round_size):
        return False
    return store.num_tokens >= options.num_tokens or (
        prompts is not None and not _unanswered(store, prompts)
    )


def _unanswered(
    store: AnswerStore, prompts: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    answered = {(answer.prompt, answer.source) for answer in store.answers}
    return [pair for pair in prompts if pair not in answered]


def _rounds(
    store: AnswerStore,
    generator: Generator,
    prompts: Sequence[tuple[str, str]] | None,
) -> Iterator[list[tuple[str, str]]]:
    """Batches of prompts not yet answered."""
    size = generator.options.round_size
    if prompts is not None:
        remaining = _unanswered(store, prompts)
        for begin in range(0, len(remaining), size):
            yield remaining[begin : begin + size]
        return
    # The number of answers makes a resumed run go on with other prompts.
    rng = random.Random(f"{generator.options.seed}-{len(store.answers)}")
    while True:
        written = round(size * generator.options.written_share)
        texts = [
            (text, "written")
            for text in generator.write_prompts(
                written, rng.choice(WRITING_TEMPERATURES)
            )
        ]
        texts += [(template_prompt(rng), "template") for _ in range(size - written)]
        rng.shuffle(texts)
        yield texts
