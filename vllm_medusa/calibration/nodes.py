# SPDX-License-Identifier: Apache-2.0
"""Forcing a number of nodes: each request asks for it, as any client may.

Steps in which all requests ask for the same are those that a batch table with that
number gives (`vllm_medusa.scheduler.MedusaScheduler`), with either model runner.
"""

from __future__ import annotations

from typing import Any

from vllm_medusa.request_options import NODES_KEY


def with_nodes(nodes: int) -> dict[str, Any]:
    """`extra_args` of a request whose tree has `nodes` nodes; 0: no Medusa code."""
    return {NODES_KEY: nodes}
