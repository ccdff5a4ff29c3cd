# SPDX-License-Identifier: Apache-2.0
"""One validated configuration for every way to ask for Medusa."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from vllm_medusa.acceptance import (
    POSSIBLE as POSSIBLE_ACCEPTANCE,
)
from vllm_medusa.acceptance import (
    Acceptance,
    Delta,
    Epsilon,
    FirstToken,
    Scheme,
)
from vllm_medusa.batch_table import BatchTable, check_batch_table
from vllm_medusa.config_text import join_text, split_text
from vllm_medusa.errors import ConfigError, MedusaError, TreeError
from vllm_medusa.json_file import parse_json
from vllm_medusa.tree.beam import BeamTree
from vllm_medusa.tree.builders import from_list
from vllm_medusa.tree.specification import (
    POSSIBLE_TREES,
    check_tree_text,
    known_tree,
)
from vllm_medusa.wording import show, suggest

_Count = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
_Name = Annotated[str, Field(strict=True, min_length=1)]
AttentionChoice = Literal["auto", "triton", "cascade", "xformers"]
"""Implementations of tree attention, see `vllm_medusa.attention`."""

_POSSIBLE = {
    "heads": 'a folder, a Hugging Face id or "default"',
    "revision": "a branch, tag or commit of the heads' repository",
    "num_heads": "a whole number of at least 1",
    "tree": POSSIBLE_TREES,
    "num_speculative_tokens": "a whole number of at least 1",
    **POSSIBLE_ACCEPTANCE,
    "attention": '"auto", "triton", "cascade" or "xformers"',
    "draft_vocab": "a whole number of at least 1",
    "num_speculative_tokens_per_batch_size": (
        '"auto", null, or a list of [first, last, nodes]'
    ),
}


class MedusaConfig(BaseModel):
    """Which heads to use, and how.

    It is immutable and hashable; `as_dict` gives what `MedusaConfig(**…)` takes.

    Attributes:
        heads: folder or Hugging Face id of the heads, or "default" for those
            shipped for the default model.
        revision: branch, tag or commit of the Hugging Face repository.
        num_heads: use only the first so many heads; None uses all.
        tree: see `vllm_medusa.tree.parse_tree`; None takes that of
            calibration.json beside the heads, else tree.json there, else the best one
            for accuracies.json, else a chain.
        num_speculative_tokens: cut the tree to its first so many nodes.
        acceptance: "exact", "rejection" or "typical", see
            `vllm_medusa.acceptance.Acceptance`; a request may ask for another.
        epsilon: of typical acceptance.
        delta: of typical acceptance; None leaves the threshold epsilon alone.
        first_token: of typical acceptance: "drawn" or "greedy".
        attention: implementation of tree attention; "auto" takes the fastest that the
            platform has.
        draft_vocab: use only the first so many entries of the heads' token_map.
        num_speculative_tokens_per_batch_size: nodes by number of running requests,
            see `check_batch_table`; "auto" takes calibration.json beside the heads
            if there is one; None verifies the whole tree at any load.

    Raises:
        ConfigError: a key is unknown, a value impossible, or two contradict.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: _Name
    revision: _Name | None = None
    num_heads: _Count | None = None
    tree: str | tuple[tuple[int, ...], ...] | None = None
    num_speculative_tokens: _Count | None = None
    acceptance: Scheme = "exact"
    epsilon: Epsilon = 0.09
    delta: Delta | None = 0.3
    first_token: FirstToken = "drawn"
    attention: AttentionChoice = "auto"
    draft_vocab: _Count | None = None
    num_speculative_tokens_per_batch_size: BatchTable | Literal["auto"] | None = "auto"

    def __init__(self, **fields: Any) -> None:
        known = type(self).model_fields
        for key in fields:
            if key not in known:
                raise _unknown_key(key, known)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _config_error(error) from None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form: `medusa:HEADS[@revision][?key=value&…]`.

        Raises:
            ConfigError: the text is malformed or a value in it is impossible.
        """
        return cls(**split_text(text))

    @classmethod
    def from_speculative_config(cls, options: Mapping[str, Any]) -> Self:
        """Read the dict of vLLM's `speculative_config`.

        Its keys are "method" ("medusa"), "model" (the heads) and the other fields
        of this class.

        Raises:
            ConfigError: a key is unknown or missing, or a value is impossible.
        """
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"speculative_config is {show(options)}: it must be a dict"
            )
        fields = dict(options)
        known = ["method", "model", *(k for k in cls.model_fields if k != "heads")]
        for key in fields:
            if key not in known:
                raise _unknown_key(key, known, "speculative_config key")
        method = fields.pop("method", None)
        if method != "medusa":
            raise ConfigError(
                f'speculative_config has method {show(method)}: Medusa needs "medusa"'
            )
        heads = fields.pop("model", None)
        if heads is None:
            raise ConfigError(
                'speculative_config lacks "model": give the heads, '
                f"{_POSSIBLE['heads']}"
            )
        return cls(heads=heads, **fields)

    @property
    def engine_acceptance(self) -> Acceptance:
        """How drafts are accepted where a request does not say otherwise."""
        return Acceptance(
            scheme=self.acceptance,
            epsilon=self.epsilon,
            delta=self.delta,
            first_token=self.first_token,
        )

    def to_text(self) -> str:
        """Return the text form; `parse` makes an equal configuration of it."""
        fields = self.model_dump(exclude_defaults=True)
        return join_text(fields)

    def to_speculative_config(self) -> dict[str, Any]:
        """Return the dict form, as `from_speculative_config` reads it."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return {"method": "medusa", "model": fields.pop("heads"), **fields}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON has them, for `MedusaConfig(**fields)`."""
        return self.model_dump(mode="json")

    @classmethod
    def model_validate(cls, *args: Any, **kwargs: Any) -> Self:
        """Validate as pydantic does, but raise ConfigError."""
        try:
            return super().model_validate(*args, **kwargs)
        except ValidationError as error:
            raise _config_error(error) from None

    @classmethod
    def model_validate_json(cls, *args: Any, **kwargs: Any) -> Self:
        """Validate JSON text as pydantic does, but raise ConfigError."""
        try:
            return super().model_validate_json(*args, **kwargs)
        except ValidationError as error:
            raise _config_error(error) from None

    @field_validator("tree", mode="before")
    @classmethod
    def _check_tree(cls, tree: Any) -> Any:
        if isinstance(tree, str) and tree.startswith("["):
            tree = parse_json(tree, "the tree")
        if isinstance(tree, str):
            check_tree_text(tree)
        elif tree is not None:
            return from_list(tree).paths
        return tree

    @field_validator("num_speculative_tokens_per_batch_size", mode="before")
    @classmethod
    def _check_table(cls, table: Any) -> Any:
        if table is None or (isinstance(table, str) and table == "auto"):
            return table
        return check_batch_table(table)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.heads == "default" and self.revision is not None:
            raise ConfigError(
                f"revision {show(self.revision)} with the default heads: they are "
                "shipped with the package and have none"
            )
        if self.tree is not None:
            self._check_against_tree(self.tree)
        table = self.num_speculative_tokens_per_batch_size
        limit = self.num_speculative_tokens
        beam = BeamTree.parse(self.tree)
        if beam is not None and limit is not None:
            raise ConfigError(
                f"num_speculative_tokens is {limit}, but {beam.text} always has "
                f"{beam.num_nodes} nodes: choose another width or depth"
            )
        if beam is not None and self.acceptance == "rejection":
            raise ConfigError(
                "acceptance is 'rejection', which draws the candidates, but "
                f"{beam.text} takes the most probable ones: choose another tree"
            )
        if isinstance(table, tuple) and limit is not None:
            most = max(nodes for _, _, nodes in table)
            if most > limit:
                raise ConfigError(
                    f"num_speculative_tokens_per_batch_size asks for {most} nodes but "
                    f"num_speculative_tokens is {limit}: raise it or lower the table"
                )
        return self

    def _check_against_tree(self, value: str | tuple[tuple[int, ...], ...]) -> None:
        tree = known_tree(value)
        if tree is None:
            return
        if self.num_heads is not None:
            tree.check_heads(self.num_heads)
        check_num_speculative_tokens(self.num_speculative_tokens, tree.num_nodes)


def check_num_speculative_tokens(limit: int | None, num_nodes: int) -> None:
    """Refuse to cut a tree of `num_nodes` nodes to more than it has.

    Raises:
        ConfigError: `limit` is more than `num_nodes`.
    """
    if limit is not None and limit > num_nodes:
        raise ConfigError(
            f"num_speculative_tokens is {limit} but the tree has only {num_nodes} "
            f"nodes: give at most {num_nodes}, or a larger tree"
        )


def _unknown_key(key: object, known: Collection[str], what: str = "key") -> ConfigError:
    return ConfigError(
        f"unknown {what} {show(key)}{suggest(key, known)}: Medusa knows "
        f"{', '.join(known)}"
    )


def _config_error(error: ValidationError) -> ConfigError:
    """Return the first problem of pydantic's list as one sentence."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    field = str(problem["loc"][0]) if problem["loc"] else ""
    if isinstance(cause, TreeError) and field == "tree":
        return ConfigError(f"tree: {cause}")
    if isinstance(cause, MedusaError):
        return ConfigError(str(cause))
    if problem["type"] == "missing":
        return ConfigError(f"{field} is missing: give {_POSSIBLE[field]}")
    if field not in _POSSIBLE:
        # Not an object at all, or no JSON.
        return ConfigError(f"the configuration is no mapping: {problem['msg']}")
    return ConfigError(
        f"{field} is {show(problem['input'])}: it must be {_POSSIBLE[field]}"
    )
