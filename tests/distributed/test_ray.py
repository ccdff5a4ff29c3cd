# SPDX-License-Identifier: Apache-2.0
"""Two ranks on two Ray nodes: placement, what reaches them, and their text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from vllm import LLM

from tests.distributed.support.requests import (
    GREEDY,
    SEEDED,
    STRUCTURED,
    TWO_RANKS,
    ask,
    by_scheme,
)
from tests.distributed.support.two_nodes import two_nodes
from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers
from tests.engine.support.engines import engine
from tests.engine.support.grammars import CONFIG
from vllm_medusa import __version__
from vllm_medusa.compatibility import ALLOW_UNKNOWN
from vllm_medusa.distributed import ray_cluster
from vllm_medusa.distributed.installation import installation
from vllm_medusa.errors import ConfigError, UnsupportedError

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="executors do not depend on the runner"),
]

TREE = "beam:4x2"
LATE = "VLLM_MEDUSA_TEST_OF_RAY"
"""A variable that is set once the nodes run, so that they can't have inherited it."""


@pytest.fixture(scope="module")
def one_rank(splittable: TinyModel) -> dict[str, Any]:
    with engine(splittable.path, **CONFIG) as llm:
        plain = {
            "greedy": answers(ask(llm, GREEDY)),
            "seeded": answers(ask(llm, SEEDED)),
            "structured": answers(ask(llm, STRUCTURED)),
        }
    medusa = {"model": splittable.heads, "tree": TREE}
    with engine(splittable.path, medusa, **CONFIG) as llm:
        return plain | {"typical": answers(ask(llm, by_scheme("typical")))}


@pytest.fixture(
    scope="module",
    params=[
        ray_cluster.SLOT,
        pytest.param(ray_cluster.CPU, marks=pytest.mark.slow),
    ],
)
def resource(request: pytest.FixtureRequest) -> str:
    """What the nodes offer: slots for ranks, or nothing but their CPU."""
    return request.param


@pytest.fixture(scope="module")
def two_ranks(
    splittable: TinyModel, ray_folder: Path, one_rank: dict[str, Any], resource: str
) -> Iterator[LLM]:
    slots = {resource: 1.0} if resource == ray_cluster.SLOT else {}
    with pytest.MonkeyPatch.context() as patch, two_nodes(ray_folder, patch, slots):
        patch.setenv(ALLOW_UNKNOWN, "1")
        patch.setenv(LATE, "late")
        with engine(
            splittable.path,
            {"model": splittable.heads, "tree": TREE},
            **CONFIG,
            **TWO_RANKS,
            distributed_executor_backend="ray",
            additional_config={"of_the_user": 7},
        ) as llm:
            yield llm
    assert not ray.is_initialized()


def look(worker: Any) -> dict[str, Any]:
    """What a rank knows; runs in its process."""
    from vllm.distributed import get_tp_group

    from vllm_medusa.distributed.installation import installation

    group = get_tp_group()
    return {
        "node": ray.get_runtime_context().get_node_id(),
        "rank": group.rank_in_group,
        "plugin": installation(),
        "environment": {name: os.environ.get(name) for name in (ALLOW_UNKNOWN, LATE)},
        "additional_config": worker.vllm_config.additional_config,
        "worker": type(worker.worker).__name__,
        "channel": group.device_communicator.dist_module is torch.distributed,
    }


def test_placement_and_what_reaches_the_ranks(two_ranks, resource):
    found = two_ranks.collective_rpc(look)
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert len(nodes) == 2
    assert {rank["node"] for rank in found} == nodes
    # The first one where the engine is.
    assert found[0]["node"] == ray.get_runtime_context().get_node_id()
    assert [rank["rank"] for rank in found] == [0, 1]
    bundles = ray.util.placement_group_table().values()
    (held,) = [group["bundles"] for group in bundles if group["state"] == "CREATED"]
    assert list(held.values()) == [{resource: 1.0}] * 2
    for rank in found:
        assert rank["plugin"]["version"] == __version__
        assert rank["plugin"]["host"] == installation()["host"]
        assert rank["environment"] == {ALLOW_UNKNOWN: "1", LATE: "late"}
        assert rank["additional_config"]["of_the_user"] == 7
        assert rank["additional_config"]["medusa"]["config"]["tree"] == TREE
        assert rank["worker"] == "MedusaCPUWorker"
        # Nodes share no memory, even if these two could.
        assert rank["channel"]


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("greedy", GREEDY),
        ("seeded", SEEDED),
        ("structured", STRUCTURED),
        ("typical", by_scheme("typical")),
    ],
)
def test_text(two_ranks, one_rank, kind, params):
    """A beam searches a tree for each request, from probabilities of all ranks."""
    assert answers(ask(two_ranks, params)) == one_rank[kind]
    first, second = two_ranks.collective_rpc("medusa_stats")
    assert first == second
    assert first["accepted"] > 0


def test_node_with_another_plugin(two_ranks, monkeypatch):
    """Nodes are asked before anything is loaded there."""
    group = two_ranks.llm_engine.vllm_config.parallel_config.placement_group
    ray_cluster.require_same_plugin(group, {})
    other = {"version": "9.9", "source": "f" * 64, "host": "elsewhere"}
    monkeypatch.setattr(ray_cluster, "installation", lambda: other)
    message = rf"Ray node .* has vllm-medusa {__version__} .*9\.9.*on every node"
    with pytest.raises(UnsupportedError, match=message):
        ray_cluster.require_same_plugin(group, {})


def test_node_without_the_plugin(two_ranks, tmp_path):
    group = two_ranks.llm_engine.vllm_config.parallel_config.placement_group
    blocked = "import sys; sys.modules['vllm_medusa'] = None"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    runtime_env = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    with pytest.raises(UnsupportedError, match=r"node .* can't import .*install"):
        ray_cluster.require_same_plugin(group, runtime_env)


def test_too_few_places(two_ranks, resource):
    with pytest.raises(ConfigError, match=f"3 ranks .*'{resource}'.* has 2"):
        ray_cluster.connect(3)
