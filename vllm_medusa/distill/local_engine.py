# SPDX-License-Identifier: Apache-2.0
"""An engine of this machine."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from vllm_medusa.distill.engine_arguments import engine_arguments
from vllm_medusa.distill.options import DistillOptions
from vllm_medusa.distill.requests import Request
from vllm_medusa.vllm_refusal import vllm_refusal


class LocalEngine:
    """`vllm.LLM`, with all requests of a turn queued at once.

    Raises:
        ConfigError: vLLM refuses the model or an option.
    """

    def __init__(self, options: DistillOptions) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        arguments = engine_arguments(options, is_on_cpu=current_platform.is_cpu())
        with vllm_refusal(options.model):
            self._llm = LLM(options.model, **arguments)

    def complete(self, requests: Sequence[Request]) -> list[list[int]]:
        """As `Engine.complete`."""
        from vllm import SamplingParams

        if not requests:
            return []
        outputs = self._llm.generate(
            [{"prompt_token_ids": request.token_ids} for request in requests],
            [SamplingParams(**request.sampling()) for request in requests],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        """As `Engine.close`."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
