# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: engines in worker processes, prompts, figures, plots."""
