# SPDX-License-Identifier: Apache-2.0
"""Several ranks: which executor runs them, and whether they can be one engine."""
