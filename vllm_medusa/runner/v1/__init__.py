# SPDX-License-Identifier: Apache-2.0
"""Adapter to Model Runner V1 (`vllm/v1/worker/gpu_model_runner.py`)."""

from vllm_medusa.runner.v1.model_runner import MedusaCPUModelRunner

__all__ = ["MedusaCPUModelRunner"]
