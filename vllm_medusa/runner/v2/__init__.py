# SPDX-License-Identifier: Apache-2.0
"""Adapter to Model Runner V2 (`vllm/v1/worker/gpu/`).

Every number of a step lives on the device, and the host schedules the next step
before it knows what this one accepted. So nothing here reads a tensor.
"""
