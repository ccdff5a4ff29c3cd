# SPDX-License-Identifier: Apache-2.0
"""Requests that vLLM refuses beside its own speculative methods, and Medusa serves."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from vllm import SamplingParams

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig


def install() -> None:
    """Let min_p and logit_bias through where Medusa runs.

    `SamplingParams._validate_spec_decode` answers them with a 400 as soon as there
    is any speculative method. Here such a request is decoded without a tree by
    vLLM's own sampler (`vllm_medusa.runner.requests.exclusion_reason`).
    """
    upstream = SamplingParams._validate_spec_decode

    @functools.wraps(upstream)
    def _validate_spec_decode(
        self: SamplingParams, speculative_config: SpeculativeConfig | None
    ) -> None:
        if speculative_config is not None:
            from vllm_medusa.engine_config import is_medusa

            if is_medusa(speculative_config):
                return
        upstream(self, speculative_config)

    SamplingParams._validate_spec_decode = _validate_spec_decode
