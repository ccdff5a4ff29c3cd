# SPDX-License-Identifier: Apache-2.0
"""Checks of requests: what Medusa serves and vLLM would refuse, and the reverse."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from vllm import PoolingParams, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.input_processor import InputProcessor

from vllm_medusa.errors import ConfigError
from vllm_medusa.request_options import RequestOptions

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig


def install() -> None:
    """Wrap the checks that a request passes before it is queued."""
    _wrap_validate_spec_decode()
    _wrap_validate_params()


def _wrap_validate_spec_decode() -> None:
    """Let min_p and logit_bias through where Medusa runs.

    vLLM answers them with a 400 as soon as there is any speculative method; on
    Medusa's tree rows they are right.
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


def _wrap_validate_params() -> None:
    """Refuse a request's own settings of Medusa, in `extra_args`, if they can't be."""
    upstream = InputProcessor._validate_params

    @functools.wraps(upstream)
    def _validate_params(
        self: InputProcessor, params: SamplingParams | PoolingParams, *args: Any
    ) -> Any:
        result = upstream(self, params, *args)
        if isinstance(params, SamplingParams) and params.extra_args is not None:
            from vllm_medusa.engine_config import medusa_config, medusa_options

            if medusa_options(self.vllm_config) is not None:
                engine = medusa_config(self.vllm_config).engine_acceptance
                try:
                    RequestOptions.of(params, engine)
                except ConfigError as error:
                    raise VLLMValidationError(
                        str(error), parameter="extra_args"
                    ) from None
        return result

    InputProcessor._validate_params = _validate_params
