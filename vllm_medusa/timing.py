# SPDX-License-Identifier: Apache-2.0
"""Seconds spent in the parts of a step, measured in the worker.

One in `INTERVAL` steps with trees is timed for the metrics, as long as none of its
requests computes its prompt; `VLLM_MEDUSA_TIMING=1`, set when the worker starts, times
every step, for the benchmarks. In a timed step a part costs two readings of a clock,
in others one comparison. On a GPU the clock is the device's (events), and nothing
waits for it: a step's times are read at a later one, when the device has passed them.

| part | what |
|---|---|
| `step` | from the start of `execute_model` to the end of `sample_tokens` |
| `prepare` | finding the trees and their rows' positions |
| `attention` | tree attention on a CPU, over the prefix too |
| `draw` | a draw from the model's distribution at every row |
| `verify` | what of the trees is accepted, the walk |
| `move` | the accepted rows' keys and values to their places |
| `propose` | the heads, and the next trees |

A plain step has a counterpart of `attention` and `draw`, not of the other four.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

INTERVAL = 32
"""Steps with trees from one that is timed for the metrics to the next."""
OWN_PARTS = ("prepare", "verify", "move", "propose")
"""What a plain step has nothing of."""
PARTS = (*OWN_PARTS, "draw")
"""What the metrics show; "attention" is timed on a CPU only."""

# A reading of the clock: seconds on the host, or an event.
Mark = Any
Span = tuple[str, Mark, Mark]

_ATTRIBUTE = "medusa_parts"
_always = os.environ.get("VLLM_MEDUSA_TIMING") == "1"
_off: AbstractContextManager[None] = nullcontext()
_on_device = False
# What `read` adds up, if every step is timed.
_spans: list[Span] = []
# When the step under way began, if it is timed.
_step_start: Mark = None
# Its parts, if it is timed for the metrics; those steps whose clock has yet to be read;
# the number of steps with trees since the last one.
_sampled: list[Span] | None = None
_unread: deque[list[Span]] = deque()
_num_steps = 0


def use_device_clock(device_type: str) -> None:
    """Measure what the device does rather than when it is asked; for GPU workers."""
    global _on_device
    _on_device = device_type != "cpu"


def measure(part: str) -> AbstractContextManager[None]:
    """Add the time spent inside the block to `part`."""
    if _sampled is None and not _always:
        return _off
    return _measure(part)


@contextmanager
def _measure(part: str) -> Iterator[None]:
    start = _mark()
    try:
        yield
    finally:
        _keep((part, start, _mark()))


def _keep(span: Span) -> None:
    if _always:
        _spans.append(span)
    if _sampled is not None:
        _sampled.append(span)


def _mark() -> Mark:
    if not _on_device:
        return time.perf_counter()
    event = torch.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: Mark, end: Mark) -> float:
    if not _on_device:
        return float(end - start)
    return float(start.elapsed_time(end)) / 1e3


def begin_step(output: SchedulerOutput) -> None:
    """Begin a step and decide whether it is timed."""
    global _sampled, _step_start
    _sampled = [] if _is_due(output) else None
    if _sampled is not None or _always:
        _step_start = _mark()


def _is_due(output: SchedulerOutput) -> bool:
    global _num_steps
    drafts = output.scheduled_spec_decode_tokens
    if not drafts:
        return False
    _num_steps += 1
    if _num_steps < INTERVAL:
        return False
    num_decoded = len(output.num_scheduled_tokens) + sum(map(len, drafts.values()))
    if output.total_num_scheduled_tokens != num_decoded:
        return False
    _num_steps = 0
    return True


def end_step() -> None:
    """End the step that `begin_step` began."""
    global _sampled, _step_start
    if _step_start is None:
        return
    _keep(("step", _step_start, _mark()))
    if _sampled is not None:
        _unread.append(_sampled)
    _sampled = _step_start = None


def take_sample() -> dict[str, float] | None:
    """Return seconds by part of a step that was timed for the metrics, once; None if
    there is none whose end the device has passed."""
    if not _unread or (_on_device and not _unread[0][-1][-1].query()):
        return None
    return _sum(_unread.popleft())


def _sum(spans: list[Span]) -> dict[str, float]:
    totals: defaultdict[str, float] = defaultdict(float)
    for part, start, end in spans:
        totals[part] += _seconds(start, end)
    return dict(totals)


def attach(parts: dict[str, float], model_runner_output: Any) -> None:
    """Send what `take_sample` returned with a ModelRunnerOutput."""
    setattr(model_runner_output, _ATTRIBUTE, parts)


def parts_of(model_runner_output: Any) -> dict[str, float] | None:
    """Return what was sent with a ModelRunnerOutput."""
    parts: dict[str, float] | None = getattr(model_runner_output, _ATTRIBUTE, None)
    return parts


def reset_samples() -> None:
    """Forget the steps so far, such as those of vLLM's warm-up."""
    global _sampled, _step_start, _num_steps
    _sampled, _step_start, _num_steps = None, None, 0
    _unread.clear()


def read(reset: bool = True) -> dict[str, dict[str, float]]:
    """Return {part: {"seconds": …, "calls": …}} since the last reset; waits for the
    device. Empty unless every step is timed."""
    if _on_device and _spans:
        _spans[-1][-1].synchronize()
    calls = Counter(part for part, _, _ in _spans)
    result = {
        part: {"seconds": seconds, "calls": calls[part]}
        for part, seconds in _sum(_spans).items()
    }
    if reset:
        _spans.clear()
    return result
