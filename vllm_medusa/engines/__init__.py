# SPDX-License-Identifier: Apache-2.0
"""vLLM engines in processes of their own, for the demo and the benchmarks."""
