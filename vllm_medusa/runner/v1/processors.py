# SPDX-License-Identifier: Apache-2.0
"""vLLM's logits processors, for requests and for tree rows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitBiasLogitsProcessor,
    LogitsProcessors,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.logits_processor import (
    build_logitsprocs as upstream_build_logitsprocs,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    Row = tuple[SamplingParams, list[int] | None, list[int]]
    """Parameters, prompt, and tokens after the prompt, down to the row itself."""

_BUILT_IN = (LogitBiasLogitsProcessor, MinPLogitsProcessor, MinTokensLogitsProcessor)


class RowProcessors:
    """A second set of an engine's logits processors, whose requests are tree rows.

    In each step that needs them all rows replace those of the last one, as requests
    that have their text already, which is how vLLM adds a request after preemption.
    So what a user's processor does must follow from a request's parameters and tokens.
    """

    def __init__(self, processors: LogitsProcessors) -> None:
        self.processors = processors
        self.has_custom = not all(isinstance(p, _BUILT_IN) for p in processors.all)
        """Whether there are others than vLLM's own."""
        self._num_rows = 0

    def replace_rows(self, rows: Sequence[Row]) -> None:
        """Make `rows` the requests of the processors, in the order of the logits."""
        update = BatchUpdate(
            batch_size=len(rows),
            # Rows that are added again must not be among the removed: vLLM's own
            # processors remove last.
            removed=range(self._num_rows - 1, len(rows) - 1, -1),
            added=[(index, *row) for index, row in enumerate(rows)],
            moved=(),
        )
        self._num_rows = len(rows)
        for processor in self.processors.all:
            processor.update_state(update)


class ProcessorBuilder:
    """Stands for `build_logitsprocs` while vLLM's runner is made.

    vLLM's own function leaves min_p, logit_bias and its user's processors out, or
    refuses them, where there is a speculative method. This one builds what an engine
    without one has, once for requests and once for rows.
    """

    rows: RowProcessors

    def __call__(self, vllm_config: VllmConfig, *args: Any) -> LogitsProcessors:
        """As `vllm.v1.sample.logits_processor.build_logitsprocs`."""
        speculative = vllm_config.speculative_config
        assert speculative is not None
        plain = copy(vllm_config)
        plain.speculative_config = None
        processors = upstream_build_logitsprocs(plain, *args)
        by_row = copy(plain)
        by_row.scheduler_config = copy(plain.scheduler_config)
        by_row.scheduler_config.max_num_seqs *= speculative.num_speculative_tokens + 1
        self.rows = RowProcessors(upstream_build_logitsprocs(by_row, *args))
        return processors
