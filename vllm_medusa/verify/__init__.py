# SPDX-License-Identifier: Apache-2.0
"""Acceptance: which path of a token tree is kept, and what a step emits.

Pure PyTorch, batched over requests, fixed shapes, no host round trip. Three
schemes: `verify_exact` and `verify_rejection` keep the target model's law,
`verify_typical` trades it for speed.
"""

from vllm_medusa.verify.exact import verify_exact
from vllm_medusa.verify.rejection import verify_rejection
from vllm_medusa.verify.typical import RowStatistics, row_statistics, verify_typical
from vllm_medusa.verify.verification import PLACEHOLDER, Verification

__all__ = [
    "PLACEHOLDER",
    "RowStatistics",
    "Verification",
    "row_statistics",
    "verify_exact",
    "verify_rejection",
    "verify_typical",
]
