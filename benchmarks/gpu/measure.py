# SPDX-License-Identifier: Apache-2.0
"""The measurements of one model: engines started in groups, visited in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.gpu.engines import Setup, engine_arguments, kv_bytes, names, start
from benchmarks.gpu.exactness import PROMPTS
from benchmarks.gpu.grid import PLAIN, Cell, Grid, split
from benchmarks.gpu.models import Model
from benchmarks.gpu.records import Records
from benchmarks.gpu.timings import check_memory, compare, shares, speed_up
from vllm_medusa.engines.process import EngineError, EngineProcess

SPEED_CONCURRENCY = (1, 8)
SPEED_TOKENS = 128
# KV cache of each engine on a CPU, where only a toy is measured.
_CPU_CACHE_BYTES = 64 << 20


class Bench:
    """Measures one model into one file.

    Args:
        model: with its heads.
        grid: what to measure, and how long.
        setup: what all engines share.
        engines: loaded at once, plain vLLM among them.
        records: where figures go; what it has already is not measured again.

    Raises:
        ValueError: so many engines do not fit into the GPU's memory.
        EngineError: plain vLLM does not run. An engine with Medusa that does not run,
            or dies, is left out and named in the file.
    """

    def __init__(
        self, model: Model, grid: Grid, setup: Setup, engines: int, records: Records
    ) -> None:
        self._model = model
        self._grid = grid
        self._setup = setup
        self._engines = engines
        self._records = records
        self._cache = _CPU_CACHE_BYTES
        if setup.memory_bytes is not None:
            self._cache = kv_bytes(model, setup.memory_bytes, engines)
        self.cells = list(grid.cells(self._cache // model.kv_bytes))

    def measure(self, attentions: Sequence[str], parts: Sequence[int]) -> None:
        """Everything for each implementation of attention; plain vLLM stays loaded.

        `parts` are the row counts whose parts are timed.
        """
        with ExitStack() as stack:
            plain: dict[int, EngineProcess] = {}
            for attention in attentions:
                for rows in split(self._grid.rows, self._engines):
                    if self._is_done(attention, rows):
                        continue
                    if not plain:
                        plain = self._start(stack, attention, [PLAIN])
                    if not plain:
                        raise EngineError("plain vLLM does not run: see its message")
                    self._measure_group(plain, attention, rows)
                self._measure_parts(attention, parts)

    def _is_done(self, attention: str, rows: Sequence[int]) -> bool:
        return not (
            any(self._lacks(attention, rows, cell) for cell in self.cells)
            or any(self._lacks_speed(attention, rows, c) for c in self._speeds())
        )

    def _measure_group(
        self, plain: Mapping[int, EngineProcess], attention: str, rows: Sequence[int]
    ) -> None:
        """Cells, and with real heads speed, of a few row counts beside plain vLLM."""
        with ExitStack() as stack:
            engines = {**plain, **self._start(stack, attention, rows)}
            for cell in self.cells:
                if len(engines) > 1 and self._lacks(attention, rows, cell):
                    self._measure_cell(engines, attention, cell)
            for concurrency in self._speeds():
                if len(engines) > 1 and self._lacks_speed(attention, rows, concurrency):
                    self._measure_speed(engines, attention, concurrency)

    def _measure_parts(self, attention: str, rows: Sequence[int]) -> None:
        """Parts of a step at the shortest context, in engines that time them."""
        shortest = [c for c in self.cells if c.context == min(self._grid.contexts)]
        for count in rows:
            cells = [c for c in shortest if self._lacks(attention, [count], c, "parts")]
            if not cells:
                continue
            with ExitStack() as stack:
                timed = {"VLLM_MEDUSA_TIMING": "1"}
                engines = self._start(stack, attention, [count], timed)
                for cell in cells if engines else []:
                    figures = shares(self._visit(engines[count], cell, timing=True))
                    at = {"attention": attention, "rows": count, **cell.place}
                    self._records.add("parts", figures, **at)

    def _lacks(
        self, attention: str, rows: Sequence[int], cell: Cell, kind: str = "cells"
    ) -> bool:
        """Whether a row count of this cell is still to be measured."""
        place = {"attention": attention, **cell.place}
        return not all(self._records.has(kind, rows=n, **place) for n in rows)

    def _lacks_speed(
        self, attention: str, rows: Sequence[int], concurrency: int
    ) -> bool:
        place = {"attention": attention, "concurrency": concurrency}
        return not all(self._records.has("speed", rows=n, **place) for n in rows)

    def _speeds(self) -> tuple[int, ...]:
        """Concurrencies to answer questions at: random weights have no answers."""
        return () if self._model.random_weights else SPEED_CONCURRENCY

    def _start(
        self,
        stack: ExitStack,
        attention: str,
        rows: Sequence[int],
        environment: Mapping[str, str] | None = None,
    ) -> dict[int, EngineProcess]:
        """Engines by row count; refusals and what the engines tell are written."""
        named = names(rows)
        arguments = {
            named[n]: engine_arguments(
                self._model, self._grid, n, attention, self._setup, self._cache
            )
            for n in rows
        }
        engines, refused = start(
            stack, arguments, {**self._setup.environment, **(environment or {})}
        )
        content = self._records.content
        content["refused"] |= {f"{attention}, {n}": why for n, why in refused.items()}
        for name, engine in engines.items():
            key = name if name == names([PLAIN])[PLAIN] else f"{attention}, {name}"
            content["refused"].pop(key, None)
            content["engines"][key] = about = engine.call("about")
            memory = about["memory"]
            if "buffers" in memory and (problem := check_memory(memory)):
                print(f"{key}: {problem}")
        self._records.save()
        return {n: engines[named[n]] for n in rows if named[n] in engines}

    def _visit(
        self, engine: EngineProcess, cell: Cell, *, timing: bool = False
    ) -> dict[str, Any]:
        visit: dict[str, Any] = engine.call(
            "steps",
            batch=cell.batch,
            context=cell.context,
            steps=self._grid.steps,
            warm_up=self._grid.warm_up,
            timing=timing,
        )
        return visit

    def _measure_cell(
        self, engines: dict[int, EngineProcess], attention: str, cell: Cell
    ) -> None:
        """Step times of all engines in one cell."""
        where = f"context {cell.context}, batch {cell.batch}"
        visits = self._take_turns(
            engines, attention, where, lambda engine: self._visit(engine, cell)
        )
        plain = visits.pop(PLAIN)
        for rows, found in visits.items():
            at = {"attention": attention, "rows": rows, **cell.place}
            if not self._records.has("cells", **at):
                figures = compare(plain, found)
                self._records.add("cells", figures, **at)
                overhead = figures["overhead"]["median"]
                name = f"{attention}, {names([rows])[rows]}, {where}"
                print(f"{name}: {overhead:.3f} plain steps", flush=True)

    def _measure_speed(
        self, engines: dict[int, EngineProcess], attention: str, concurrency: int
    ) -> None:
        """Tokens/s on real questions, `concurrency` of them at a time."""

        def ask(engine: EngineProcess) -> dict[str, Any]:
            run: dict[str, Any] = engine.call(
                "speed",
                prompts=PROMPTS,
                max_tokens=SPEED_TOKENS,
                concurrency=concurrency,
            )
            return run

        runs = self._take_turns(engines, attention, f"{concurrency} at a time", ask)
        plain = runs.pop(PLAIN)
        for rows, found in runs.items():
            at = {"attention": attention, "rows": rows, "concurrency": concurrency}
            if not self._records.has("speed", **at):
                self._records.add("speed", speed_up(plain, found), **at)

    def _take_turns(
        self,
        engines: dict[int, EngineProcess],
        attention: str,
        where: str,
        visit: Callable[[EngineProcess], dict[str, Any]],
    ) -> dict[int, list[dict[str, Any]]]:
        """Every engine once per repeat, in an order that turns round.

        One that dies with Medusa is taken out of `engines`.
        """
        visits: dict[int, list[dict[str, Any]]] = {rows: [] for rows in engines}
        order = list(engines)
        for repeat in range(self._grid.repeats):
            shift = repeat % len(order)
            for rows in order[shift:] + order[:shift]:
                if rows in engines:
                    try:
                        visits[rows].append(visit(engines[rows]))
                    except EngineError as error:
                        if rows == PLAIN:
                            raise
                        del engines[rows], visits[rows]
                        name = f"{attention}, {names([rows])[rows]}, {where}"
                        print(f"{name}: the engine ended: {error}", flush=True)
                        self._records.content["refused"][name] = str(error)
                        self._records.save()
        return visits
