# SPDX-License-Identifier: Apache-2.0
"""Named sets of settings, each the answer to one question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vllm_medusa.errors import ConfigError
from vllm_medusa.evaluation.settings import Setting, make_config

TREE = "optimal:5"
"""The tree of suites that compare something else than trees."""

TREE_NODES = 5
BEAM_WIDTHS = (2, 5, 10)
EPSILONS = (0.01, 0.03, 0.05, 0.09, 0.15, 0.25)
EPSILON_TEMPERATURE = 0.7
TEMPERATURES = (0.3, 0.7, 1.0)
CARTESIAN = ("2x1", "2x2", "2x2x2")
"""Widths from head 1 down: 4, 6 and 14 nodes."""


def heads_suite(heads: str, num_heads: int) -> Iterator[Setting]:
    """What each further head brings: heads 1 to K as a chain, and as the best tree of
    `TREE_NODES` nodes over them."""
    for count in range(1, num_heads + 1):
        config = make_config(heads, tree=f"chain:{count}", num_heads=count)
        name = f"chain of {count}"
        yield Setting("heads", name, config, series="chain", value=count)
    for count in range(1, num_heads + 1):
        config = make_config(heads, tree=TREE, num_heads=count)
        name = f"tree over {count}"
        series = f"best tree of {TREE_NODES} nodes"
        yield Setting("heads", name, config, series=series, value=count)


def beam_suite(heads: str, num_heads: int) -> Iterator[Setting]:
    """Trees chosen per request and step: beam widths by depths 1 to K."""
    for width in BEAM_WIDTHS:
        for depth in range(1, num_heads + 1):
            config = make_config(heads, tree=f"beam:{width}x{depth}")
            name = f"beam {width}x{depth}"
            yield Setting("beam", name, config, series=f"width {width}", value=depth)


def trees_suite(heads: str, num_heads: int) -> Iterator[Setting]:
    """Cartesian against optimal trees of as many nodes."""
    for text in CARTESIAN:
        widths = [int(width) for width in text.split("x")]
        if len(widths) > num_heads:
            continue
        nodes = sum(math.prod(widths[:depth]) for depth in range(1, len(widths) + 1))
        for series, tree in (("cartesian", text), ("optimal", f"optimal:{nodes}")):
            config = make_config(heads, tree=tree)
            name = f"cartesian {text}" if series == "cartesian" else tree
            yield Setting("trees", name, config, series=series, value=nodes)


def epsilon_suite(heads: str, num_heads: int) -> Iterator[Setting]:
    """Typical acceptance by its threshold, delta = sqrt(epsilon) as in the paper
    (arXiv 2401.10774, figure 5), and exact acceptance beside it."""
    exact = make_config(heads, tree=TREE)
    yield Setting("epsilon", "exact", exact, EPSILON_TEMPERATURE, "exact")
    for epsilon in EPSILONS:
        config = make_config(
            heads,
            tree=TREE,
            acceptance="typical",
            epsilon=epsilon,
            delta=round(math.sqrt(epsilon), 4),
        )
        name = f"epsilon {epsilon}"
        yield Setting("epsilon", name, config, EPSILON_TEMPERATURE, "typical", epsilon)


def acceptance_suite(heads: str, num_heads: int) -> Iterator[Setting]:
    """Exact, typical and rejection acceptance by temperature."""
    for temperature in TEMPERATURES:
        for scheme in ("exact", "typical", "rejection"):
            config = make_config(heads, tree=TREE, acceptance=scheme)
            name = f"{scheme} at {temperature}"
            yield Setting("acceptance", name, config, temperature, scheme, temperature)


Suite = Callable[[str, int], Iterator[Setting]]
SUITES: dict[str, Suite] = {
    "heads": heads_suite,
    "beam": beam_suite,
    "trees": trees_suite,
    "epsilon": epsilon_suite,
    "acceptance": acceptance_suite,
}
ALL = "all"
POSSIBLE = ", ".join([*SUITES, ALL])


def make_settings(names: Sequence[str], heads: str, num_heads: int) -> list[Setting]:
    """The settings of the suites called `names`, "all" for every suite.

    Raises:
        ConfigError: there is no suite of a name.
    """
    chosen: dict[str, Any] = {}
    for name in names:
        if name != ALL and name not in SUITES:
            raise ConfigError(f"unknown suite {name[:60]!r}: there are {POSSIBLE}")
        chosen |= SUITES if name == ALL else {name: SUITES[name]}
    return [setting for suite in chosen.values() for setting in suite(heads, num_heads)]
