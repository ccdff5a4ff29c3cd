# SPDX-License-Identifier: Apache-2.0
"""What happens between two forward passes, in few launches and without a host.

Each Triton kernel stands beside the PyTorch code that defines it and that runs
where Triton does not. Both have fixed shapes and never wait for the device, so
either can be captured in a CUDA graph.
"""
