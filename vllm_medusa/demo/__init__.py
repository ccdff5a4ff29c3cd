# SPDX-License-Identifier: Apache-2.0
"""The same prompts through plain vLLM and through Medusa, side by side."""
