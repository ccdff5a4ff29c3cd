# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of vllm-medusa: `python -m benchmarks.latency --help` and its siblings."""
