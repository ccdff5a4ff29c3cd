# SPDX-License-Identifier: Apache-2.0
"""The engine's side: take jobs as JSON lines on stdin, answer each by one on stdout.

The first line holds the arguments of `vllm.LLM`, each later one a job: its name under
"job", its arguments beside it. An answer is `{"result": …}`, `{"error": "…"}`, or
`{"refusal": "…"}` for bad input that the user can mend. While the process waits for a
line it uses no CPU.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any

from vllm_medusa.errors import MedusaError

if TYPE_CHECKING:
    from vllm import LLM

Job = Callable[..., Any]
"""Takes the LLM and the line's other keys; its result goes into JSON."""


def serve(
    jobs: Mapping[str, Job], warm_up: Callable[[LLM], object] = lambda llm: None
) -> None:
    """Load the engine of the first line, then do jobs until stdin ends.

    `warm_up` belongs to the loading, whose seconds are the first result.
    """
    answers = _private_stdout()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        arguments = json.loads(sys.stdin.readline())
        from vllm import LLM

        start = time.perf_counter()
        llm = LLM(**arguments)
        warm_up(llm)
        answer({"result": {"seconds": time.perf_counter() - start}})
        for line in sys.stdin:
            job = json.loads(line)
            answer({"result": jobs[job.pop("job")](llm, **job)})
    except MedusaError as error:
        answer({"refusal": str(error)})
        sys.exit(2)
    except Exception as error:
        # First into the log, whose end the reader of the answer shows.
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


def _private_stdout() -> IO[str]:
    """Return the real stdout, line-buffered; what others print goes to stderr.

    Called before vLLM is imported, so that its own processes inherit the change.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel
