# SPDX-License-Identifier: Apache-2.0
"""Adapters to the model runners of vLLM. They hold no mathematics of their own."""
