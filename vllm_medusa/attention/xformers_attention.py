# SPDX-License-Identifier: Apache-2.0
"""Tree attention in two parts with xformers' partial attention."""

from __future__ import annotations

import torch

from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.xformers_prefix import XformersPrefix


class XformersTreeAttention(CascadeTreeAttention):
    """`CascadeTreeAttention` with the prefix attended by xformers."""

    name = "xformers"

    def __init__(self, max_num_reqs: int, device: torch.device) -> None:
        """Raises UnsupportedError where xformers can't be used."""
        super().__init__(XformersPrefix(max_num_reqs, device), max_num_reqs, device)
