# SPDX-License-Identifier: Apache-2.0
"""How many nodes of the tree to use at each number of running requests.

A step with n nodes costs more than a plain one and brings more tokens; with more
requests running it costs relatively more, since the machine is less idle. The table
maximises the product of the speed-ups over all numbers of requests, with two rules:
a tree is used only if it beats plain decoding by a margin, and the node count never
grows with the number of requests (a measured rise is noise, and would make the engine
change its mind as requests come and go).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from vllm_medusa.errors import ConfigError

# (lowest, highest) number of running requests, nodes: vLLM's own form.
BatchTable = list[tuple[int, int, int]]
# Step seconds by number of requests, then by number of nodes (0 = plain).
StepCosts = Mapping[int, Mapping[int, float]]

DEFAULT_MARGIN = 0.03


def interpolate_costs(costs: StepCosts, requests: int) -> dict[int, float]:
    """Step seconds by nodes for a number of requests between the measured ones.

    Linear between the two neighbours, for the node counts measured at both; the end
    values beyond the ends.
    """
    sizes = sorted(costs)
    index = bisect_left(sizes, requests)
    if index == len(sizes):
        return dict(costs[sizes[-1]])
    above = sizes[index]
    if above == requests or index == 0:
        return dict(costs[above])
    below = sizes[index - 1]
    weight = (requests - below) / (above - below)
    return {
        nodes: (1 - weight) * seconds + weight * costs[above][nodes]
        for nodes, seconds in costs[below].items()
        if nodes in costs[above]
    }


def speedups(
    costs: Mapping[int, float], tokens_per_step: Mapping[int, float]
) -> dict[int, float]:
    """Speed-up over plain decoding by nodes: tokens per step ÷ (step ÷ plain step).

    Only node counts that have both a cost and an expected number of tokens.
    """
    return {
        nodes: tokens_per_step[nodes] * costs[0] / seconds
        for nodes, seconds in costs.items()
        if nodes and nodes in tokens_per_step
    }


def choose_nodes(
    gains: Sequence[Mapping[int, float]], margin: float = DEFAULT_MARGIN
) -> list[int]:
    """Nodes for each of a growing number of requests, from speed-ups by nodes.

    Maximises the sum of log speed-ups over all non-increasing sequences whose entries
    are 0 or have a speed-up of at least 1 + margin; among equals, fewer nodes.
    """
    counts = sorted({0}.union(*gains))
    # best[i]: best total so far with at most counts[i] nodes at this place, walking
    # from the most requests to the fewest, where the node count may only grow.
    best = [0.0] * len(counts)
    choices: list[list[int]] = []
    for gain in reversed(gains):
        values = []
        for index, nodes in enumerate(counts):
            value = 1.0 if nodes == 0 else gain.get(nodes, 0.0)
            allowed = nodes == 0 or value >= 1 + margin
            values.append(best[index] + math.log(value) if allowed else -math.inf)
        choice: list[int] = []
        for index in range(len(counts)):
            chosen = choice[-1] if choice else index
            choice.append(index if values[index] > values[chosen] else chosen)
        best = [values[index] for index in choice]
        choices.append(choice)
    nodes_by_place = []
    bound = len(counts) - 1
    for place in range(len(gains) - 1, -1, -1):
        # The place with the fewest requests was walked last and is bound by nothing.
        bound = choices[place][bound]
        nodes_by_place.append(counts[bound])
    return nodes_by_place


def compress(nodes: Sequence[int]) -> BatchTable:
    """Equal neighbours as one range; the first entry is for one running request."""
    table: BatchTable = []
    for requests, count in enumerate(nodes, start=1):
        if table and table[-1][2] == count:
            table[-1] = (table[-1][0], requests, count)
        else:
            table.append((requests, requests, count))
    return table


def choose_table(
    costs: StepCosts,
    tokens_per_step: Mapping[int, float],
    margin: float = DEFAULT_MARGIN,
) -> BatchTable:
    """The table for 1 up to the largest measured number of requests.

    Beyond its last range vLLM carries the last entry forward. ConfigError if there are
    no costs, a cost is not positive, or a plain step (0 nodes) was not measured.
    """
    if not costs:
        raise ConfigError("no step costs: measure at least one number of requests")
    for requests, row in costs.items():
        if 0 not in row:
            raise ConfigError(f"no cost of a plain step with {requests} request(s)")
        for nodes, seconds in row.items():
            if not seconds > 0:
                raise ConfigError(
                    f"a step with {requests} request(s) and {nodes} node(s) cannot "
                    f"take {seconds} s"
                )
    gains = [
        speedups(interpolate_costs(costs, requests), tokens_per_step)
        for requests in range(1, max(costs) + 1)
    ]
    return compress(choose_nodes(gains, margin))
