# SPDX-License-Identifier: Apache-2.0
"""The noise of seeded requests on tree rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.v1.sample.sampler import Sampler

from vllm_medusa.runner.v1.rows import StepRows

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_input_batch import InputBatch


class RowGenerators:
    """A generator for each row of a seeded request.

    vLLM draws from a request's generator once per token. Here a row at depth d draws
    what the generator gives after d other draws, and the request goes on from where
    the last row that was accepted came to: with the same seed a text is that of plain
    decoding. Rows of one depth share their noise, but a step visits only one of them.

    Attributes:
        by_row: generator of each row of a seeded request.
    """

    def __init__(
        self,
        # by index of the request in the step
        generators: Mapping[int, torch.Generator],
        rows: StepRows,
        sampler: Sampler,
        vocab_size: int,
    ) -> None:
        self.by_row: dict[int, torch.Generator] = {}
        self._generators = generators
        if not generators:
            return
        first_rows = rows.first_rows.tolist()
        for index, generator in generators.items():
            self.by_row[first_rows[index]] = generator
        if rows.trees is None:
            return
        trees = zip(
            rows.trees.request_indices.tolist(),
            rows.trees.num_rows_np.tolist(),
            rows.trees.depths().tolist(),
            strict=True,
        )
        for index, num_rows, depths in trees:
            if index not in generators:
                continue
            states = [generators[index].get_state()]
            for _ in range(max(depths[:num_rows])):
                generator = _from_state(states[-1])
                # As many numbers as a draw takes, of which the logits don't matter.
                logits = torch.zeros(1, vocab_size)
                sampler.topk_topp_sampler(logits, {0: generator}, None, None)
                states.append(generator.get_state())
            for row in range(num_rows):
                generator = _from_state(states[depths[row]])
                self.by_row[first_rows[index] + row] = generator

    def commit(
        self,
        # [num_reqs] row of each request's last accepted token
        last_rows: Sequence[int],
    ) -> None:
        """Let every seeded request go on behind the draw at its last row."""
        for index, generator in self._generators.items():
            last = self.by_row[last_rows[index]]
            if last is not generator:
                generator.set_state(last.get_state())


def _from_state(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


@contextmanager
def unfinished_unseeded(
    input_batch: InputBatch,
    # [max_num_reqs] bool, whether a request's prompt is not finished by this step
    unfinished: np.ndarray,
) -> Iterator[None]:
    """Sample without the generators of requests whose prompt comes in chunks.

    What is drawn for them is thrown away. vLLM (`GPUModelRunner._bookkeeping_sync`)
    takes the draw back by the generator's offset, which only CUDA's generators have: on
    a CPU a seeded request with a long prompt would end the engine.
    """
    generators = input_batch.generators
    aside = {i: generators.pop(i) for i in list(generators) if unfinished[i]}
    try:
        yield
    finally:
        generators.update(aside)
