# SPDX-License-Identifier: Apache-2.0
"""Engines of a Ray cluster, in Ray Data's vLLM batch stage."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Sequence
from typing import Any

from vllm_medusa.distill.engine_arguments import engine_arguments
from vllm_medusa.distill.options import DistillOptions
from vllm_medusa.distill.requests import Request
from vllm_medusa.engines.process import EngineError
from vllm_medusa.errors import ConfigError, MedusaError, UnsupportedError

_EXCEPTION = re.compile(r"[\w.]*(Error|Exception)\b")


class RayEngine:
    """One pipeline for the whole run: requests go in as they come up.

    Its engines take a GPU each (or as many as there are ranks), and where the cluster
    has none a unit of the resource that `ray_cluster.connect` names.

    Raises:
        ConfigError: a package is missing, or the cluster or room in it.
        UnsupportedError: several ranks on CPUs.
        EngineError: from `complete`: the engines refused their arguments, or died.
    """

    def __init__(self, options: DistillOptions) -> None:
        try:
            import ray
            import ray.data
            from ray.data.llm import build_processor
        except ImportError as error:
            raise ConfigError(
                f"--ray needs the packages of two extras ({error}): pip install "
                "'vllm-medusa[ray,train]'"
            ) from None
        from vllm_medusa.distill.ray_stream import (
            MailboxDatasource,
            open_mailbox,
            rows_of,
        )
        from vllm_medusa.distributed import ray_cluster

        _name_cluster(options.engine.ray)
        resource = ray_cluster.connect(options.engine.ray_engines or 1)
        try:
            config = _processor_config(options, resource)
        except MedusaError:
            ray_cluster.leave()
            raise
        context = ray.data.DataContext.get_current()
        # Each row is a block of its own and goes on at once: blocks would wait to be
        # filled.
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        # The steps around the engines only pass rows on; with CPUs of their own they
        # could keep an engine from its last one.
        no_cpu: dict[str, Any] = {"num_cpus": 0}
        processor = build_processor(
            config,
            preprocess=_to_stage,
            postprocess=_from_stage,
            preprocess_map_kwargs=no_cpu,
            # Each task that runs at once has a process of its own.
            postprocess_map_kwargs=no_cpu | {"concurrency": 2},
        )
        self._mailbox = open_mailbox()
        source = MailboxDatasource(self._mailbox)
        dataset = ray.data.read_datasource(source, num_cpus=0, override_num_blocks=1)
        self._rows = rows_of(processor(dataset))
        self._num_sent = 0
        self._is_waiting = False

    def complete(self, requests: Sequence[Request]) -> list[list[int]]:
        """As `Engine.complete`."""
        import ray

        first = self._num_sent
        self._num_sent += len(requests)
        rows = [
            {
                "index": first + number,
                "token_ids": request.token_ids,
                "sampling": json.dumps(request.sampling()),
            }
            for number, request in enumerate(requests)
        ]
        self._is_waiting = True
        ray.get(self._mailbox.put.remote(rows))
        found: dict[int, list[int]] = {}
        while len(found) < len(requests):
            try:
                row = next(self._rows)
            except (StopIteration, ray.exceptions.RayError) as error:
                raise EngineError(
                    f"the engines in the Ray cluster ended: {_reason(error)}"
                ) from error
            # A row may come twice, the same, if Ray had to repeat it.
            if row["index"] >= first:
                found[row["index"]] = list(row["token_ids"])
        self._is_waiting = False
        return [found[first + number] for number in range(len(requests))]

    def close(self) -> None:
        """As `Engine.close`: lets the pipeline end, and leaves the cluster, with which
        ends what nobody waits for any more."""
        import ray

        from vllm_medusa.distributed import ray_cluster

        try:
            if not self._is_waiting:
                ray.get(self._mailbox.close.remote())
                for _ in self._rows:
                    pass
        finally:
            ray_cluster.leave()


def _name_cluster(address: str | None) -> None:
    """Set RAY_ADDRESS, which `ray_cluster.connect` looks at.

    Raises:
        ConfigError: nobody listens at the address. Ray itself would try for minutes.
    """
    if address in (None, "auto"):
        return
    assert address is not None
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"there is no Ray cluster at {address} ({error}): start it, or give "
                "auto or local"
            ) from None
    os.environ["RAY_ADDRESS"] = address


def _processor_config(options: DistillOptions, resource: str) -> Any:
    import ray
    from ray.data.llm import vLLMEngineProcessorConfig

    ranks = options.engine.tensor_parallel_size
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if not gpus and ranks > 1:
        raise UnsupportedError(
            f"the Ray cluster has no GPU, and an engine of {ranks} ranks on CPUs does "
            "not run in Ray Data: use --tensor-parallel-size 1"
        )
    room = gpus // ranks if gpus else _cpu_engines(resource)
    engines = options.engine.ray_engines or max(1, room)
    if engines > room:
        raise ConfigError(
            f"the Ray cluster has room for {room} engines of {ranks} "
            f"{'GPUs' if gpus else 'CPU places'}: lower --ray-engines or "
            "--tensor-parallel-size"
        )
    arguments = engine_arguments(options, is_on_cpu=not gpus)
    return vLLMEngineProcessorConfig(
        model_source=options.model,
        engine_kwargs=arguments,
        concurrency=(engines, engines),
        # A row is a batch: a larger one would wait for rows that never come.
        batch_size=1,
        max_concurrent_batches=options.engine.max_num_seqs,
        log_engine_metrics=False,
        # Token ids go in and come out.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        placement_group_config=None if gpus else {"bundles": [{resource: 1}]},
        runtime_env={"env_vars": _environment()},
    )


def _cpu_engines(resource: str) -> int:
    """Places for engines on CPUs: the slots, or one per node where there are none."""
    import ray

    from vllm_medusa.distributed import ray_cluster

    if resource == ray_cluster.SLOT:
        return int(ray.cluster_resources()[resource])
    return sum(bool(node["Alive"]) for node in ray.nodes())


def _environment() -> dict[str, str]:
    """Variables of this process that decide how vLLM runs."""
    from vllm_medusa.distributed.ray_cpu_executor import THREAD_VARIABLES

    return {
        name: value
        for name, value in os.environ.items()
        if name in THREAD_VARIABLES or name.startswith("VLLM_")
    }


def _to_stage(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokenized_prompt": row["token_ids"],
        "sampling_params": json.loads(row["sampling"]),
    }


def _from_stage(row: dict[str, Any]) -> dict[str, Any]:
    return {"index": row["index"], "token_ids": row["generated_tokens"]}


def _reason(error: BaseException) -> str:
    """The last exception that a traceback names, on one line."""
    lines = str(error).strip().splitlines()
    named = [i for i, line in enumerate(lines) if _EXCEPTION.match(line)]
    text = " ".join(" ".join(lines[named[-1] :] if named else lines[-1:]).split())
    return text[:400] or type(error).__name__
