# SPDX-License-Identifier: Apache-2.0
"""What `VllmConfig` decides by the name of the speculative method.

vLLM sends "custom_class" to Model Runner V1 and schedules it synchronously, since
its own runner for that method needs both. Ours needs neither.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

from vllm.config import VllmConfig
from vllm.config import vllm as config_module

from vllm_medusa.replace import replaced

METHOD = "custom_class"


def install() -> None:
    """Wrap the methods of `VllmConfig` that ask for the method."""
    _wrap_post_init()
    _wrap_unsupported_features()
    # vLLM 0.32 keeps the table of every method.
    if hasattr(VllmConfig, "_maybe_disable_dynamic_sd_for_v1"):
        _wrap_disable_dynamic_sd()


def _has_medusa(vllm_config: VllmConfig) -> bool:
    if vllm_config.speculative_config is None:
        return False
    from vllm_medusa.engine_config import is_medusa

    return is_medusa(vllm_config.speculative_config)


def _wrap_post_init() -> None:
    """Keep async scheduling, which vLLM 0.32 grants by a list of method names."""
    upstream = VllmConfig.__post_init__
    known = get_args(config_module.NgramGPUTypes)
    with_ours = Literal[(*known, METHOD)]  # type: ignore[valid-type]

    @functools.wraps(upstream)
    def post_init(self: VllmConfig) -> None:
        if not _has_medusa(self):
            upstream(self)
            return
        with replaced(config_module, "NgramGPUTypes", with_ours):
            upstream(self)

    VllmConfig.__post_init__ = post_init


def _wrap_unsupported_features() -> None:
    upstream = VllmConfig._get_v2_model_runner_unsupported_features

    @functools.wraps(upstream)
    def _get_v2_model_runner_unsupported_features(self: VllmConfig) -> Any:
        features = upstream(self)
        if not _has_medusa(self):
            return features
        return [feature for feature in features if f"'{METHOD}'" not in feature]

    VllmConfig._get_v2_model_runner_unsupported_features = (
        _get_v2_model_runner_unsupported_features
    )


def _wrap_disable_dynamic_sd() -> None:
    """Keep the batch-size table on Model Runner V1, which vLLM 0.33 drops by method
    name: our runner verifies as many nodes as the scheduler places."""
    upstream = VllmConfig._maybe_disable_dynamic_sd_for_v1

    @functools.wraps(upstream)
    def _maybe_disable_dynamic_sd_for_v1(self: VllmConfig) -> None:
        if not _has_medusa(self):
            upstream(self)

    VllmConfig._maybe_disable_dynamic_sd_for_v1 = _maybe_disable_dynamic_sd_for_v1
