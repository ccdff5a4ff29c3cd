# SPDX-License-Identifier: Apache-2.0
"""A run: shard after shard until there is enough, or nothing left to ask."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vllm_medusa.distill.end_tokens import end_token_ids
from vllm_medusa.distill.manifest import Manifest
from vllm_medusa.distill.options import DistillOptions
from vllm_medusa.distill.plan import DUPLICATE, Planner
from vllm_medusa.distill.requests import Engine
from vllm_medusa.distill.sources import Sources, read_sources
from vllm_medusa.distill.talk import Record, Talk
from vllm_medusa.distill.tally import Tally, count_records
from vllm_medusa.errors import ConfigError
from vllm_medusa.files import remove_leftovers
from vllm_medusa.locks import exclusive
from vllm_medusa.prompts import check_chat_template, normalised
from vllm_medusa.train.progress import Progress

_LIKELY_ANSWER = 64
"""Tokens, for the size of the first shard."""
_MARGIN = 1.1
"""Of the last shard's size over what the mean so far asks for."""
_MOST_FRUITLESS = 100
"""Prompts in a row without an answer before a run ends with an error."""


def distill(options: DistillOptions, progress: Progress) -> Manifest:
    """Make the answers, or go on where an interrupted run stopped.

    Raises:
        ConfigError: a source can't be read, the model has no chat template, or the
            folder holds something else.
        OutputError: another process is at work in the folder, or it can't be written.
    """
    with exclusive(options.output, wait=False):
        remove_leftovers(options.output)
        sources = read_sources(options)
        deciding = {**options.deciding(), "prompts_read": sources.digest}
        manifest = Manifest(options.output, deciding)
        if not manifest.is_complete:
            run = _Run(options, sources, manifest, progress)
            run.finish()
        return manifest


class _Run:
    def __init__(
        self,
        options: DistillOptions,
        sources: Sources,
        manifest: Manifest,
        progress: Progress,
    ) -> None:
        self._options = options
        self._sources = sources
        self._manifest = manifest
        self._progress = progress
        self._tally = Tally()
        self._seen = set(sources.listed)
        for shard in manifest.shards:
            self._tally.add(shard)
        for record in manifest.records():
            self._see(record)

    def finish(self) -> None:
        """Write the shards that are missing."""
        size = self._next_size()
        if size:
            # Before the engine starts.
            tokenizer = _load_tokenizer(self._options.model)
            check_chat_template(tokenizer)
            ends = end_token_ids(self._options.model, tokenizer)
            engine = _LazyEngine(self._options)
            talk = Talk(engine, tokenizer, ends, self._options)
            per_prompt = self._options.samples * self._options.turns
            planner = Planner(self._sources, per_prompt, talk.fits, talk.write)
            self._progress.stage("answers", self._total())
            self._progress.advance_to(self._done())
            try:
                while size:
                    self._make_shard(size, planner, talk)
                    self._progress.advance_to(self._done())
                    size = self._next_size()
            finally:
                engine.close()
        self._manifest.complete()

    def _make_shard(self, size: int, planner: Planner, talk: Talk) -> None:
        left_out: Counter[str] = Counter()
        if not self._manifest.shards:
            left_out[DUPLICATE] += self._sources.duplicates
        tried = 0
        while True:
            plan = planner.plan(size, self._tally, self._seen)
            conversations, unanswered = talk.hold(plan.conversations)
            records = self._within_budget(conversations)
            left_out += unanswered + plan.left_out
            if records:
                break
            # A last shard may be of one prompt: one empty answer is not the end.
            tried += size
            self._tally.move_on(plan.positions, plan.ended)
            is_at_end = len(plan.ended) == len(self._sources.all)
            if is_at_end and self._manifest.shards:
                return
            if is_at_end or tried >= _MOST_FRUITLESS:
                raise ConfigError(
                    f"of {tried} prompts none brought an answer "
                    f"({_listed(left_out) or 'the sources are empty'}): give other "
                    "sources, or a longer max_model_len"
                )
        shard = count_records(records) | {
            "positions": dict(sorted(plan.positions.items())),
            "ended": sorted(plan.ended),
            "left_out": dict(sorted((+left_out).items())),  # without zeros
        }
        self._manifest.add(records, shard)
        self._tally.add(shard)
        for record in records:
            self._see(record)

    def _within_budget(self, conversations: Sequence[list[Record]]) -> list[Record]:
        """The records up to the conversation with which there are enough tokens."""
        kept: list[Record] = []
        tokens = self._tally.tokens
        for records in conversations:
            if self._options.num_tokens is not None:
                if tokens >= self._options.num_tokens:
                    break
                tokens += sum(len(record["answer_token_ids"]) for record in records)
            kept += records
        return kept

    def _see(self, record: Record) -> None:
        if record["turn"] == 0:
            self._seen.add(normalised(record["prompt"]))

    def _next_size(self) -> int:
        """Prompts of the next shard, 0 if none is needed."""
        options, tally = self._options, self._tally
        if len(tally.ended) == len(self._sources.all):
            return 0
        size = options.shard_prompts
        if options.num_prompts is not None:
            size = min(size, options.num_prompts - tally.num_prompts)
        if options.num_tokens is not None:
            likely = min(_LIKELY_ANSWER, options.max_answer_tokens) * options.samples
            mean = tally.tokens_per_prompt() or likely * options.turns
            left = options.num_tokens - tally.tokens
            size = min(size, math.ceil(left / mean * _MARGIN))
        return max(0, size)

    def _total(self) -> int:
        options = self._options
        return options.num_tokens or options.num_prompts or self._sources.num_listed

    def _done(self) -> int:
        if self._options.num_tokens is not None:
            return self._tally.tokens
        return self._tally.num_prompts


class _LazyEngine:
    """The engine, started with the first requests: by then all that can be refused
    without one is."""

    def __init__(self, options: DistillOptions) -> None:
        self._options = options
        self._engine: Engine | None = None

    def complete(self, requests: Sequence[Any]) -> list[list[int]]:
        """As `Engine.complete`."""
        if not requests:
            return []
        if self._engine is None:
            self._engine = start_engine(self._options)
        return self._engine.complete(requests)

    def close(self) -> None:
        """As `Engine.close`."""
        if self._engine is not None:
            self._engine.close()


def start_engine(options: DistillOptions) -> Engine:
    """The engine that the options ask for.

    Raises:
        ConfigError: as `LocalEngine` and `RayEngine`.
    """
    if options.engine.ray is None:
        from vllm_medusa.distill.local_engine import LocalEngine

        return LocalEngine(options)
    from vllm_medusa.distill.ray_engine import RayEngine

    return RayEngine(options)


def _load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"can't load the tokenizer of {model}: {reason}") from error


def _listed(counts: Any) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()))
