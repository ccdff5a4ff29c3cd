# SPDX-License-Identifier: Apache-2.0
"""Which engines an evaluation needs, and how they are started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from vllm_medusa.config import MedusaConfig
from vllm_medusa.default_model import cache_folder
from vllm_medusa.demo.compare import on_cpu
from vllm_medusa.engines.process import EngineProcess
from vllm_medusa.errors import ConfigError
from vllm_medusa.evaluation.settings import PLAIN, Setting
from vllm_medusa.evaluation.trees import EXTENSION

WORKER = "vllm_medusa.evaluation.worker"
# vLLM as it comes: none of its plugins, this package included.
_WITHOUT_PLUGINS = {"VLLM_PLUGINS": ""}


@dataclass(frozen=True)
class ResolvedTree:
    """A tree as a running engine takes it: paths or the text of a beam search, the
    heads in use, and its nodes."""

    value: str | tuple[tuple[int, ...], ...]
    num_heads: int | None
    num_nodes: int


@cache
def resolve(config: MedusaConfig) -> ResolvedTree:
    """The tree that a configuration means.

    Raises:
        MedusaError: the heads can't be read, or the tree is not possible with them.
    """
    from vllm_medusa.checkpoint import load_heads
    from vllm_medusa.tree import BeamTree
    from vllm_medusa.tree.resolve import resolve_tree

    checkpoint = load_heads(config.heads, config.revision, num_heads=config.num_heads)
    tree = resolve_tree(config, checkpoint.folder, checkpoint.spec.num_heads)
    beam = BeamTree.parse(config.tree)
    value = tree.paths if beam is None else beam.text
    return ResolvedTree(value, config.num_heads, tree.num_nodes)


@dataclass(frozen=True)
class Engine:
    """One engine: what it is started with (None: plain vLLM), and whether it serves
    the trees of several settings in turn."""

    name: str
    config: MedusaConfig | None
    changes_trees: bool = False

    def tree_arguments(self, setting: Setting) -> list[Any] | None:
        """What the job "run" needs so that the engine has the setting's tree."""
        if not self.changes_trees or setting.config is None:
            return None
        tree = resolve(setting.config)
        return [tree.value, tree.num_heads, tree.num_nodes]


def can_change_trees() -> bool:
    """Whether engines here run Model Runner V1, in which a tree can be changed."""
    return on_cpu() and os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") == "0"


def plan_engines(
    settings: Sequence[Setting], changes_trees: bool
) -> dict[Setting, Engine]:
    """The engine of each setting.

    With `changes_trees`, settings that differ in tree and number of heads alone share
    one, which is started with the largest tree; settings that differ only in what a
    request can choose always do.

    Raises:
        MedusaError: a setting's heads or tree are not possible.
    """
    families: dict[tuple[MedusaConfig, bool], list[Setting]] = {}
    for setting in settings:
        config = setting.engine_config()
        assert config is not None, "plain vLLM is in every group"
        # A batch table is fixed when an engine starts, and is about one tree.
        changes = changes_trees and not config.num_speculative_tokens_per_batch_size
        if changes:
            without_tree = {"tree": None, "num_heads": None}
            config = config.model_copy(
                update=without_tree | {"num_speculative_tokens": None}
            )
        families.setdefault((config, changes), []).append(setting)
    engines = {}
    for number, ((_, changes), family) in enumerate(families.items(), start=1):
        configs = [setting.engine_config() for setting in family]
        largest = max(
            (config for config in configs if config is not None),
            key=lambda config: resolve(config).num_nodes,
        )
        engine = Engine(f"medusa-{number}", largest, changes)
        engines.update(dict.fromkeys(family, engine))
    return engines


def group_engines(engines: Sequence[Engine], size: int) -> list[list[Engine]]:
    """Groups of at most `size` engines to hold in memory at once, plain vLLM in each.

    ConfigError if `size` < 2: a ratio needs two engines.
    """
    if size < 2:
        raise ConfigError(f"--engines must be at least 2, plain vLLM and one: {size}")
    width = size - 1
    others = list(dict.fromkeys(engines))
    return [
        [Engine(PLAIN, None), *others[start : start + width]]
        for start in range(0, len(others), width)
    ]


def start_engines(
    stack: ExitStack,
    engines: Sequence[Engine],
    shared: Mapping[str, Any],
    environment: Mapping[str, str],
    progress: Callable[[str], None],
) -> dict[str, EngineProcess]:
    """One process per engine, by its name; they load side by side.

    `shared` are arguments of `LLM` for all. `stack` ends the processes.

    Raises:
        EngineError: an engine refused its arguments or did not start.
    """
    processes = {}
    for engine in engines:
        arguments, variables = dict(shared), dict(environment)
        if engine.config is None:
            variables |= _WITHOUT_PLUGINS
        else:
            arguments["speculative_config"] = engine.config.to_speculative_config()
        if engine.changes_trees:
            arguments["worker_extension_cls"] = EXTENSION
        processes[engine.name] = stack.enter_context(
            EngineProcess(
                engine.name,
                WORKER,
                arguments,
                variables,
                cache_folder() / f"evaluate-{engine.name}.log",
            )
        )
    for name, process in processes.items():
        progress(f"engine {name} loaded in {process.wait_until_ready():.0f} s")
    return processes
