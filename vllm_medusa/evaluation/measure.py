# SPDX-License-Identifier: Apache-2.0
"""Run all settings on all prompts, engines taking turns with plain vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, pairwise
from time import monotonic
from typing import Any

from vllm_medusa.calibration.looping import length_without_loop
from vllm_medusa.calibration.machine import engine_environment
from vllm_medusa.calibration.steps import Request, Run, run_from_dict
from vllm_medusa.demo.compare import on_cpu
from vllm_medusa.engines.process import EngineProcess
from vllm_medusa.errors import ConfigError
from vllm_medusa.evaluation.engines import (
    Engine,
    group_engines,
    plan_engines,
    start_engines,
)
from vllm_medusa.evaluation.metrics import Score
from vllm_medusa.evaluation.options import Options
from vllm_medusa.evaluation.prompts import Prompt
from vllm_medusa.evaluation.records import OutputKey, Record, output_key
from vllm_medusa.evaluation.settings import PLAIN, Setting, plain

# An answer that loops sooner says nothing about speed.
MIN_TOKENS = 16
# Settings between two runs of plain vLLM in one turn: what the machine does changes
# within minutes.
_BLOCK = 8


@dataclass
class Measured:
    """What was measured so far.

    Attributes:
        records: one per run.
        scores: of every answer under the base model.
        lengths: tokens of the longest answer to each prompt, by its name.
    """

    records: list[Record] = field(default_factory=list)
    scores: dict[OutputKey, Score] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)


def make_blocks(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Settings of one suite and temperature, a few at a time, plain vLLM first."""
    groups: dict[tuple[str, float], list[Setting]] = {}
    for setting in settings:
        groups.setdefault((setting.suite, setting.temperature), []).append(setting)
    return [
        [plain(suite, temperature), *group[start : start + _BLOCK]]
        for (suite, temperature), group in groups.items()
        for start in range(0, len(group), _BLOCK)
    ]


class Measurement:
    """The measurement of some settings on some prompts.

    Args:
        options: how.
        prompts: what to ask.
        settings: what to compare, plain vLLM left out.
        progress: is told what is going on.
        on_block: is called whenever `measured` has all of a few more settings.

    Raises:
        MedusaError: a setting is not possible with its heads.
    """

    def __init__(
        self,
        options: Options,
        prompts: Sequence[Prompt],
        settings: Sequence[Setting],
        progress: Callable[[str], None],
        on_block: Callable[[Measured], None] = lambda measured: None,
    ) -> None:
        self.options = options
        self.prompts = prompts
        self.measured = Measured()
        self._progress = progress
        self._on_block = on_block
        self._engines = plan_engines(settings, options.changes_trees)
        self._groups = group_engines(list(self._engines.values()), options.engines)
        self._blocks = [
            make_blocks([s for s in settings if self._engines[s] in group])
            for group in self._groups
        ]
        self._prompt_ids: dict[str, list[int]] = {}
        blocks = chain.from_iterable(self._blocks)
        self._total = options.repeats * sum(len(block) for block in blocks)
        self._done = 0
        self._started = 0.0

    def run(self) -> Measured:
        """Start the engines, group by group, and measure.

        Raises:
            EngineError: an engine refused its arguments or died.
            ConfigError: a prompt does not fit the context, or every answer loops.
        """
        environment = engine_environment(self.options.bind) if on_cpu() else {}
        arguments = self.options.engine_arguments()
        for group, blocks in zip(self._groups, self._blocks, strict=True):
            names = ", ".join(engine.name for engine in group)
            self._progress(f"loading {len(group)} engines: {names}")
            with ExitStack() as stack:
                processes = start_engines(
                    stack, group, arguments, environment, self._progress
                )
                if not self._prompt_ids:
                    self._prepare(processes[PLAIN])
                    self._started = monotonic()
                for block in blocks:
                    self._measure(block, processes)
                    self._score(processes[PLAIN])
                    self._on_block(self.measured)
                for process in processes.values():
                    process.finish()
        return self.measured

    def _prepare(self, process: EngineProcess) -> None:
        """Tokenise, answer each prompt once greedily, and see how far it goes."""
        names = [prompt.name for prompt in self.prompts]
        ids = process.call(
            "tokenize", conversations=[list(p.messages) for p in self.prompts]
        )
        # The last pass over prompt and answer generates one token more.
        room = self.options.max_model_len - self.options.max_tokens - 1
        for name, row in zip(names, ids, strict=True):
            if len(row) > room:
                raise ConfigError(
                    f"the prompt {name} has {len(row)} tokens, and --max-model-len "
                    f"{self.options.max_model_len} leaves room for {room}: raise it, "
                    "or lower --max-tokens"
                )
        self._prompt_ids = dict(zip(names, ids, strict=True))
        self._progress(f"plain vLLM answers {len(names)} prompts, to find loops")
        requests = [
            Request(name, self._prompt_ids[name], self.options.max_tokens)
            for name in names
        ]
        answers = self._call(process, requests, None)[0].answers
        shortest = min(MIN_TOKENS, self.options.max_tokens)
        for answer in answers:
            length = length_without_loop(answer.token_ids)
            if length >= shortest:
                self.measured.lengths[answer.name] = length
        if not self.measured.lengths:
            raise ConfigError(
                f"every answer ends or loops within {shortest} tokens: give other "
                "prompts or a larger --max-tokens"
            )

    def _measure(
        self, block: Sequence[Setting], processes: Mapping[str, EngineProcess]
    ) -> None:
        """All settings of a block, back and forth by repeat."""
        first_turn = 1 + max((r.turn for r in self.measured.records), default=-1)
        for repeat in range(self.options.repeats):
            order = list(block) if repeat % 2 == 0 else list(reversed(block))
            for setting, following in pairwise([*order, None]):
                assert setting is not None
                self._tell(setting, repeat)
                engine = self._engine(setting)
                run, machine = self._call(
                    processes[engine.name],
                    self._requests(setting, repeat),
                    engine.tree_arguments(setting),
                    settle=following is None or self._engine(following) != engine,
                )
                turn = first_turn + repeat
                record = Record(setting, turn, repeat, run, machine)
                self.measured.records.append(record)
                self._done += 1

    def _engine(self, setting: Setting) -> Engine:
        if setting.config is None:
            return Engine(PLAIN, None)
        return self._engines[setting]

    def _requests(self, setting: Setting, repeat: int) -> list[Request]:
        lengths = self.measured.lengths
        first_seed = self.options.seed + repeat * len(lengths)
        return [
            Request(
                name,
                self._prompt_ids[name],
                length,
                temperature=setting.temperature,
                seed=first_seed + index if setting.temperature else None,
                extra_args=setting.extra_args() or None,
            )
            for index, (name, length) in enumerate(lengths.items())
        ]

    def _call(
        self,
        process: EngineProcess,
        requests: Sequence[Request],
        tree: list[Any] | None,
        *,
        settle: bool = True,
    ) -> tuple[Run, dict[str, float]]:
        result = process.call(
            "run",
            settle=settle,
            requests=[vars(request) for request in requests],
            concurrency=self.options.concurrency,
            tree=tree,
        )
        return run_from_dict(result), result["machine"]

    def _score(self, process: EngineProcess) -> None:
        """Have the base model read every answer that is new."""
        answers = [a for record in self.measured.records for a in record.run.answers]
        new = {
            output_key(answer): answer
            for answer in answers
            if output_key(answer) not in self.measured.scores
        }
        sequences = [[self._prompt_ids[a.name], a.token_ids] for a in new.values()]
        for key, found in zip(
            new, process.call("score", sequences=sequences), strict=True
        ):
            self.measured.scores[key] = Score(
                tuple(found["logprobs"]), tuple(found["ranks"])
            )

    def _tell(self, setting: Setting, repeat: int) -> None:
        total = self._total
        text = (
            f"[{self._done + 1}/{total}] {setting.suite}: {setting.name}, "
            f"repeat {repeat + 1} of {self.options.repeats}"
        )
        if self._done:
            seconds = monotonic() - self._started
            left = seconds / self._done * (total - self._done)
            text += f", {seconds / 60:.1f} min so far, about {left / 60:.1f} min left"
        self._progress(text)
