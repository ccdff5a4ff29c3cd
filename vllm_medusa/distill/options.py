# SPDX-License-Identifier: Apache-2.0
"""All options of `vllm-medusa distill`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm_medusa.config import MedusaConfig
from vllm_medusa.distill.source_option import WITHOUT_LOCATION, SourceOption
from vllm_medusa.errors import ConfigError

DEFAULT_SOURCES = (
    SourceOption("self", weight=0.6),
    SourceOption("templates", weight=0.4),
)


@dataclass(frozen=True)
class EngineOptions:
    """How fast answers come; which answers come does not depend on it.

    Attributes:
        max_num_seqs: requests that an engine runs at once.
        kv_cache_gib: memory for the KV cache on a CPU; elsewhere vLLM decides.
        tensor_parallel_size: ranks of an engine.
        speculative_model: heads that speed it up, as `vllm serve` takes them.
        ray: the Ray cluster to run in: an address, "auto" or "local"; None: no Ray.
        ray_engines: engines in the cluster, None for as many as it has room for.

    Raises:
        ConfigError: a value is out of its range, or the heads would change the text.
    """

    max_num_seqs: int = 256
    kv_cache_gib: float = 1.5
    tensor_parallel_size: int = 1
    speculative_model: str | None = None
    ray: str | None = None
    ray_engines: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "tensor_parallel_size", "ray_engines"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1: {value}")
        if not 0 < self.kv_cache_gib < 1 << 20:
            raise ConfigError(f"kv_cache_gib must be above 0: {self.kv_cache_gib}")
        if self.ray is None and self.ray_engines is not None:
            raise ConfigError("ray_engines is for --ray: name a cluster, or drop it")
        if self.speculative_model is not None:
            config = MedusaConfig.parse(self.speculative_model)
            if config.acceptance != "exact":
                raise ConfigError(
                    f"acceptance={config.acceptance} would give other answers "
                    "than the model's own for a seed: leave it out"
                )


@dataclass(frozen=True)
class DistillOptions:
    """One run of `distill`.

    Attributes:
        model: folder or Hugging Face id of the model that answers.
        output: folder of the shards and the manifest.
        base_name: what the manifest calls the model; None: `model`.
        sources: where prompts come from.
        turns: answers per conversation at most.
        temperatures: of the answers, dealt in turn to a source's prompts and samples.
        top_p: of the answers.
        top_k: of the answers, 0 for all tokens.
        samples: conversations per prompt.
        max_answer_tokens: longest answer.
        max_user_tokens: longest turn that the model writes as the user.
        num_tokens: stop at the prompt with which there are so many answer tokens.
        num_prompts: stop after so many prompts.
        shard_prompts: prompts of a shard; what an interruption can lose.
        seed: of everything random.
        dtype: of the engine.
        max_model_len: its context.
        engine: what the answers do not depend on.

    Raises:
        ConfigError: a value is out of its range, or two contradict each other.
    """

    model: str
    output: Path
    base_name: str | None = None
    sources: tuple[SourceOption, ...] = DEFAULT_SOURCES
    turns: int = 1
    temperatures: tuple[float, ...] = (0.0, 0.7)
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1
    max_answer_tokens: int = 512
    max_user_tokens: int = 128
    num_tokens: int | None = None
    num_prompts: int | None = None
    shard_prompts: int = 1000
    seed: int = 0
    dtype: str = "auto"
    max_model_len: int = 2048
    engine: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        counts = ("turns", "samples", "max_answer_tokens", "max_user_tokens")
        budgets = ("num_tokens", "num_prompts")
        for name in (*counts, *budgets, "shard_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1: {value}")
        if not self.temperatures or not all(0 <= t <= 100 for t in self.temperatures):
            raise ConfigError(
                "temperatures must be numbers from 0 to 100, and at least one: "
                f"{self.temperatures}"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k is 0 (all tokens) or more, not {self.top_k}")
        if self.max_answer_tokens >= self.max_model_len:
            raise ConfigError(
                f"max_answer_tokens {self.max_answer_tokens} leaves no room for a "
                f"prompt in a context of {self.max_model_len} tokens"
            )
        if self.has_written_turns and self.max_user_tokens >= self.max_model_len:
            raise ConfigError(
                f"max_user_tokens {self.max_user_tokens} leaves no room in a context "
                f"of {self.max_model_len} tokens"
            )
        self._check_samples()
        self._check_budget()

    def _check_samples(self) -> None:
        """No prompt may be answered greedily twice: the answers would be the same."""
        most = max(
            sum(
                self.top_k == 1 or self.temperature(position, sample) == 0
                for sample in range(self.samples)
            )
            for position in range(len(self.temperatures))
        )
        if most > 1:
            raise ConfigError(
                f"{self.samples} samples at temperatures {list(self.temperatures)}"
                f"{' and top_k 1' if self.top_k == 1 else ''} answer a prompt greedily "
                "more than once, each time the same: give at most one sample per "
                "temperature, or no temperature 0"
            )

    def _check_budget(self) -> None:
        if self.num_tokens is not None or self.num_prompts is not None:
            return
        endless = [s.kind for s in self.sources if s.kind in WITHOUT_LOCATION]
        if endless:
            raise ConfigError(
                f"the source {endless[0]!r} has no end: say how much to make by "
                "num_tokens or num_prompts"
            )
        if len({source.weight for source in self.sources}) > 1:
            raise ConfigError(
                "weights are shares of num_tokens or num_prompts: give one of them "
                "(without, every prompt of every source is answered)"
            )

    def temperature(self, position: int, sample: int) -> float:
        """Of a sample of the source's prompt number `position`."""
        dealt = position * self.samples + sample
        return self.temperatures[dealt % len(self.temperatures)]

    def deciding(self) -> dict[str, Any]:
        """The options that the answers depend on, as they stand in the manifest."""
        values = asdict(self)
        for name in ("output", "engine", "base_name"):
            del values[name]
        values["model"] = self.base_name or self.model
        values["temperatures"] = list(self.temperatures)
        values["sources"] = [asdict(source) for source in self.sources]
        return values

    @property
    def has_written_turns(self) -> bool:
        """Whether the model may have to write as the user."""
        kinds = {source.kind for source in self.sources}
        return "self" in kinds or (self.turns > 1 and kinds != {"sharegpt"})

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the sources, told apart by a number where two are the same."""
        return _told_apart([source.name for source in self.sources])


def _told_apart(names: Sequence[str]) -> tuple[str, ...]:
    labels: list[str] = []
    for name in names:
        same = names[: len(labels)].count(name)
        labels.append(f"{name}#{same + 1}" if same else name)
    return tuple(labels)
