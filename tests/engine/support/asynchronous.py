# SPDX-License-Identifier: Apache-2.0
"""Async scheduling on a CPU, where vLLM switches it off as not worth while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vllm.config import VllmConfig
from vllm.platforms import current_platform


@contextmanager
def async_scheduling() -> Iterator[None]:
    """Let engines that start inside keep async scheduling, as they do on a GPU.

    Two steps are then in flight: the second is scheduled, with placeholders for its
    drafts, before the first one's tokens are known to the scheduler.
    """
    platform = type(current_platform)
    upstream = platform.check_and_update_config

    def check_and_update_config(vllm_config: VllmConfig) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        upstream(vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    platform.check_and_update_config = staticmethod(check_and_update_config)
    try:
        yield
    finally:
        platform.check_and_update_config = upstream
