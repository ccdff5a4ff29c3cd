# SPDX-License-Identifier: Apache-2.0
"""Token trees: what is verified in one step, and how such trees are made."""

from vllm_medusa.tree.accuracies import (
    check_accuracies,
    covers,
    expected_tokens,
    load_accuracies,
    node_gains,
)
from vllm_medusa.tree.beam import BeamTree
from vllm_medusa.tree.builders import cartesian, chain, from_file, optimal
from vllm_medusa.tree.published import published, published_names
from vllm_medusa.tree.specification import parse_tree
from vllm_medusa.tree.token_tree import MAX_NODES, MAX_RANKS, TokenTree

__all__ = [
    "MAX_NODES",
    "MAX_RANKS",
    "BeamTree",
    "TokenTree",
    "cartesian",
    "chain",
    "check_accuracies",
    "covers",
    "expected_tokens",
    "from_file",
    "load_accuracies",
    "node_gains",
    "optimal",
    "parse_tree",
    "published",
    "published_names",
]
