# SPDX-License-Identifier: Apache-2.0
"""The worker class that an engine with Medusa uses on GPUs, and what all share.

Nothing here may import vLLM's CPU worker: that module replaces PyTorch's streams,
events and pinned memory by stand-ins, for the whole process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.config import set_current_vllm_config
from vllm.v1.worker.gpu_worker import Worker

from vllm_medusa import timing
from vllm_medusa.attention.tree_backend import tree_backend
from vllm_medusa.distributed.worker_start import require_same_code

if TYPE_CHECKING:
    from vllm_medusa.propose import MedusaProposer


class MedusaWorker(Worker):
    """What the workers of all platforms share; `LLM.collective_rpc` may call it."""

    model_runner: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As `Worker.load_model`; the layers get tree attention."""
        with tree_backend():
            super().load_model(*args, **kwargs)
        if self.use_v2_model_runner:
            # Not in the pool of the model's weights: level 2 of sleep throws that away,
            # and a reload brings back the model alone.
            with (
                self._maybe_get_memory_pool_context(tag="runtime"),
                set_current_vllm_config(self.vllm_config),
            ):
                self.model_runner.load_medusa()

    @property
    def _proposer(self) -> MedusaProposer:
        runner = self.model_runner
        return (
            runner.speculator.proposer if self.use_v2_model_runner else runner.drafter
        )

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """As `Worker.reload_weights`; the heads follow where they share weights."""
        super().reload_weights(*args, **kwargs)
        self._proposer.follow(self.model_runner.get_model())

    def finish_weight_update(self) -> None:
        """As `Worker.finish_weight_update`; the heads follow, too."""
        super().finish_weight_update()
        self._proposer.follow(self.model_runner.get_model())

    def reload_medusa_heads(self, path: str | None = None) -> None:
        """Replace the heads of a running engine by others of the same shape.

        Requests may be running: every token is verified anyway. The tree stays.

        Args:
            path: folder, file or Hugging Face id; the last ones' by default.

        Raises:
            CheckpointError: the heads are missing, damaged or of another shape. All
                ranks then keep the heads they had.
        """
        self._proposer.reload(path, self.model_runner.get_model())

    def compile_or_warm_up_model(self) -> Any:
        """As `Worker.compile_or_warm_up_model`, which runs requests of its own."""
        times = super().compile_or_warm_up_model()
        self.model_runner.reset_medusa_stats()
        return times

    def medusa_stats(self) -> dict[str, Any]:
        """Return the runner's counters (`vllm_medusa.runner.stats.MedusaStats`)."""
        return self.model_runner.medusa_stats()

    def medusa_timing(self) -> dict[str, Any]:
        """Return and reset seconds per part; see `vllm_medusa.timing`."""
        return timing.read()

    def medusa_memory(self) -> dict[str, int]:
        """Return bytes that the heads' weights ("heads") and everything else of
        Medusa ("buffers") take on the device."""
        return self.model_runner.medusa_memory()


class MedusaGPUWorker(MedusaWorker):
    """vLLM's GPU worker with the Medusa model runner, which is V2."""

    def init_device(self) -> None:
        """As `Worker.init_device`."""
        require_same_code(self.vllm_config)
        timing.use_device_clock(self.device_config.device_type)
        super().init_device()

    def _make_model_runner(self) -> Any:
        """In place of `Worker._make_model_runner`."""
        from vllm_medusa.runner.v2.model_runner import MedusaModelRunner

        return MedusaModelRunner(self.vllm_config, self.device)
