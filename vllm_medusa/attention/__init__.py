# SPDX-License-Identifier: Apache-2.0
"""Tree attention over the paged KV cache of vLLM."""
