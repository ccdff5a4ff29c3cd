# SPDX-License-Identifier: Apache-2.0
"""A calibration from prompts to the tree of every batch size."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from vllm_medusa.calibration import probe
from vllm_medusa.calibration.accuracy import (
    NUM_RANKS,
    CalibrationPrompt,
    PlainAnswer,
    answer_plainly,
    measure_accuracies,
)
from vllm_medusa.calibration.measure import (
    StepTimer,
    measure_step_costs,
    measure_tokens_per_step,
)
from vllm_medusa.calibration.options import CalibrationOptions
from vllm_medusa.calibration.probability_mass import MassSums
from vllm_medusa.calibration.prompts import TaskPrompt
from vllm_medusa.calibration.result import CalibrationResult
from vllm_medusa.calibration.table import choose_table
from vllm_medusa.calibration.tokens import (
    expected_by_nodes,
    scale_expected,
    usable_node_counts,
    worthy_tree,
)
from vllm_medusa.errors import ConfigError
from vllm_medusa.prompts import conversation_ids
from vllm_medusa.tree import TokenTree
from vllm_medusa.vllm_refusal import vllm_refusal

if TYPE_CHECKING:
    from vllm import LLM

    from vllm_medusa.checkpoint import HeadsCheckpoint

StartEngine = Callable[[dict[str, Any]], AbstractContextManager["LLM"]]
"""Runs an engine made with these arguments of `vllm.LLM` while its block lasts."""

_ANSWERED_AT_ONCE = 4


@contextmanager
def running_engine(arguments: Mapping[str, Any]) -> Iterator[LLM]:
    """An engine that is shut down at the end, its memory free for the next one.

    Raises:
        ConfigError: vLLM refuses the model or an option.
    """
    from vllm import LLM

    with vllm_refusal(arguments["model"]):
        llm = LLM(**arguments)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


class Calibration:
    """Measures accuracies in one engine, then tokens and costs of their best tree in
    another one: an engine keeps the tree that it was started with.

    Args:
        model: folder or Hugging Face id of the base model.
        checkpoint: its heads.
        tree: `options.tree` for these heads; None where that is None.
        options: what to measure.
        start: `running_engine`, or what stands in for it.
        progress: is told what was found.
    """

    def __init__(
        self,
        model: str,
        checkpoint: HeadsCheckpoint,
        tree: TokenTree | None,
        options: CalibrationOptions,
        start: StartEngine,
        progress: Callable[[str], None],
    ) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._tree = tree
        self._options = options
        self._start = start
        self._progress = progress

    def run(self, prompts: Sequence[TaskPrompt]) -> CalibrationResult:
        """Measure and choose.

        Raises:
            ConfigError: vLLM refuses the model or an option, prompts and answers do
                not fit the context, all answers (of a task) are too short, or the
                heads guess nothing.
        """
        options = self._options
        answers, by_task = self._measure_accuracies(prompts)
        total = reduce(add, by_task.values())
        accuracies = total.table()
        tree = self._tree or worthy_tree(accuracies, max(options.node_counts))
        counts = usable_node_counts(options.node_counts, tree.num_nodes)
        expected = expected_by_nodes(tree, accuracies, counts)
        # Before the costs, whose measuring takes longest: a task's answers may be too
        # short.
        tasks = {
            task: (sums, expected_by_nodes(tree, sums.table(), counts))
            for task, sums in by_task.items()
            if task is not None
        }
        measured, costs = self._measure_costs(answers, tree, counts, expected)
        tokens = scale_expected(expected, counts[-1], measured)
        table = choose_table(costs, tokens, options.margin)
        # At no load does a request get more nodes than where the most pay.
        most = max(1, *(nodes for _, _, nodes in table))
        return CalibrationResult(
            table=table,
            tree=tree.truncate(most),
            total=total,
            by_task=tasks,
            tokens_per_step=tokens,
            measured=(counts[-1], measured),
            costs=costs,
            options=options,
            threads=os.environ.get("VLLM_CPU_OMP_THREADS_BIND"),
        )

    def _measure_accuracies(
        self, prompts: Sequence[TaskPrompt]
    ) -> tuple[list[PlainAnswer], dict[str | None, MassSums]]:
        options = self._options
        arguments = self._arguments([[0]], _ANSWERED_AT_ONCE) | {
            "enforce_eager": True,
            "worker_extension_cls": probe.EXTENSION,
        }
        with self._start(arguments) as llm:
            tokenizer: Any = llm.get_tokenizer()
            framed = [
                CalibrationPrompt(
                    conversation_ids(tokenizer, prompt.messages),
                    prompt.task if options.by_task else None,
                )
                for prompt in prompts
            ]
            longest = max(len(prompt.token_ids) for prompt in framed)
            if longest + options.max_tokens >= options.max_model_len:
                raise ConfigError(
                    f"--max-model-len {options.max_model_len} leaves no room for "
                    f"answers of {options.max_tokens} tokens after the longest prompt "
                    f"of {longest}: raise it, or give shorter prompts or a smaller "
                    "--max-tokens"
                )
            answers = answer_plainly(
                llm,
                framed,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                seed=options.seed,
                concurrency=_ANSWERED_AT_ONCE,
            )
            if not answers:
                raise ConfigError(
                    "the model ends every answer after its first token: give other "
                    "prompts"
                )
            num_ranks = NUM_RANKS
            if self._tree is not None:
                num_ranks = max(num_ranks, self._tree.max_rank + 1)
            sums = measure_accuracies(llm, answers, options.temperature, num_ranks)
        count = sum(len(answer.token_ids) for answer in answers)
        self._progress(f"accuracies from {len(answers)} answers of {count} tokens")
        return answers, sums

    def _measure_costs(
        self,
        answers: Sequence[PlainAnswer],
        tree: TokenTree,
        counts: Sequence[int],
        expected: Mapping[int, float],
    ) -> tuple[float, dict[int, dict[int, float]]]:
        """Tokens per step with the whole tree; step seconds by requests and nodes."""
        from vllm.platforms import current_platform

        options = self._options
        batch_sizes = sorted(set(options.batch_sizes))
        paths = [list(path) for path in tree.paths]
        arguments = self._arguments(paths, max(*batch_sizes, _ANSWERED_AT_ONCE)) | {
            # Compiling takes minutes on a CPU and gains little there.
            "enforce_eager": current_platform.is_cpu(),
        }
        with self._start(arguments) as llm:
            measured = measure_tokens_per_step(
                llm,
                answers,
                counts[-1],
                temperature=options.temperature,
                seed=options.seed,
                concurrency=_ANSWERED_AT_ONCE,
            )
            self._progress(
                f"{measured:.2f} tokens per step with {counts[-1]} nodes, "
                f"{expected[counts[-1]]:.2f} expected"
            )
            prompts = [answer.prompt.token_ids for answer in answers]
            longest = options.max_model_len - max(len(prompt) for prompt in prompts)
            scheduler = llm.llm_engine.vllm_config.scheduler_config
            costs = measure_step_costs(
                StepTimer(llm, prompts, longest),
                batch_sizes,
                counts,
                scale_expected(expected, counts[-1], measured),
                max_rows=min(options.max_rows, scheduler.max_num_batched_tokens),
                steps=options.steps,
                repeats=options.repeats,
                seed=options.seed,
                progress=self._progress,
            )
        return measured, costs

    def _arguments(self, paths: list[list[int]], max_num_seqs: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "dtype": self._options.dtype,
            "max_model_len": self._options.max_model_len,
            "max_num_seqs": max_num_seqs,
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "speculative_config": {
                "method": "medusa",
                "model": str(self._checkpoint.path),
                "tree": paths,
                "num_speculative_tokens_per_batch_size": None,
            },
        }
