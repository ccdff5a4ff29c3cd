# SPDX-License-Identifier: Apache-2.0
"""Checks of requests: what Medusa serves and vLLM would refuse, and the reverse."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vllm import PoolingParams, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.input_processor import InputProcessor

from vllm_medusa.acceptance import Acceptance
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
        if not isinstance(params, SamplingParams) or params.extra_args is None:
            return result
        if (engine := _acceptance(self)) is not None:
            try:
                RequestOptions.of(params, engine)
            except ConfigError as error:
                raise VLLMValidationError(str(error), parameter="extra_args") from None
        return result

    InputProcessor._validate_params = _validate_params


# By processor; an engine's configuration does not change.
_engines: WeakKeyDictionary[InputProcessor, Acceptance | None] = WeakKeyDictionary()


def _acceptance(processor: InputProcessor) -> Acceptance | None:
    """Return how an engine accepts drafts; None without Medusa."""
    if processor not in _engines:
        from vllm_medusa.engine_config import medusa_config, medusa_options

        config = processor.vllm_config
        _engines[processor] = (
            None
            if medusa_options(config) is None
            else medusa_config(config).engine_acceptance
        )
    return _engines[processor]
