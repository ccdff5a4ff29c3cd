# SPDX-License-Identifier: Apache-2.0
"""PyTorch's threads in a process that will be forked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch from starting threads inside.

    On GPUs vLLM forks the process that `LLM` was called in. OpenMP's threads do not
    outlive a fork, and the child would wait for them as soon as it has work for some.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
