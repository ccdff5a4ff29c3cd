# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests. They must stand before vLLM is imported."""

from __future__ import annotations

import os

_ENVIRONMENT = {
    # Engines run in the test's own process, one after another.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Bound threads of several processes would spin against each other.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
# Engines are given kv_cache_memory_bytes instead.
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
