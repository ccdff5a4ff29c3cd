# SPDX-License-Identifier: Apache-2.0
"""What is compared: a configuration of Medusa at a temperature, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_medusa.batch_table import TABLE_KEY
from vllm_medusa.config import MedusaConfig
from vllm_medusa.config_text import PREFIX, split_text
from vllm_medusa.errors import ConfigError

PLAIN = "plain"
"""Name of vLLM without Medusa, which every setting is compared with."""

CUSTOM = "custom"
"""Suite of the settings given on the command line."""

FORM = "NAME=OPTIONS"
# What a request may choose for itself, see vllm_medusa.acceptance.
_PER_REQUEST = ("acceptance", "epsilon", "delta", "first_token")


@dataclass(frozen=True)
class Setting:
    """One way to decode.

    Attributes:
        suite: what it is measured in.
        name: unique within the suite.
        config: of Medusa; None for plain vLLM.
        temperature: of every request.
        series: line of the suite's plot that it is a point of.
        value: its place on the plot's x-axis; None where there is no plot.
    """

    suite: str
    name: str
    config: MedusaConfig | None
    temperature: float = 0.0
    series: str = ""
    value: float | None = None

    @property
    def needs_rejection(self) -> bool:
        """Whether its engine must keep draft probabilities."""
        return self.config is not None and self.config.acceptance == "rejection"

    def extra_args(self) -> dict[str, Any]:
        """`SamplingParams.extra_args` of its requests: how drafts are accepted."""
        if self.config is None:
            return {}
        fields = {f"medusa_{key}": getattr(self.config, key) for key in _PER_REQUEST}
        if fields["medusa_delta"] is None:
            fields["medusa_delta"] = "none"
        return fields

    def engine_config(self) -> MedusaConfig | None:
        """What its engine must be started with: all that a request can't choose."""
        if self.config is None:
            return None
        defaults: dict[str, Any] = {
            key: MedusaConfig.model_fields[key].default for key in _PER_REQUEST
        }
        if self.needs_rejection:
            defaults["acceptance"] = "rejection"
        return self.config.model_copy(update=defaults)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; of the heads' folder only the name."""
        options = None
        if self.config is not None:
            heads = self.config.heads
            named = {"heads": Path(heads).name if heads.startswith("/") else heads}
            options = self.config.model_copy(update=named).to_text()
        return {
            "suite": self.suite,
            "setting": self.name,
            "options": options,
            "temperature": self.temperature,
            "series": self.series,
            "value": self.value,
        }


def plain(suite: str, temperature: float) -> Setting:
    """Plain vLLM at a temperature."""
    return Setting(suite, PLAIN, None, temperature, PLAIN)


def make_config(heads: str, **options: Any) -> MedusaConfig:
    """A configuration that verifies its whole tree unless `options` have a table.

    Raises:
        ConfigError: an option is unknown or impossible.
    """
    return MedusaConfig(heads=heads, **{TABLE_KEY: None, **options})


def parse_setting(text: str, heads: str) -> Setting:
    """Read `NAME=OPTIONS`: OPTIONS are `key=value&…` for `heads`, or a whole
    `medusa:HEADS?key=value&…`; beside Medusa's options there is `temperature`.

    Raises:
        ConfigError: the text does not have the form, or a value is impossible.
    """
    name, equals, options = text.partition("=")
    if not name or not equals or not options:
        raise ConfigError(
            f"the setting {text!r} must be {FORM}, such as "
            "'wide=tree=optimal:8&temperature=0.7'"
        )
    if name == PLAIN:
        raise ConfigError(f"{PLAIN!r} names vLLM without Medusa: choose another name")
    whole = options.startswith(PREFIX)
    fields = split_text(options if whole else f"{PREFIX}default?{options}")
    if not whole:
        fields["heads"] = heads
    temperature = _temperature(fields.pop("temperature", "0"))
    config = MedusaConfig(**{TABLE_KEY: None, **fields})
    return Setting(CUSTOM, name, config, temperature)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 100.0:
        raise ConfigError(f"temperature must be a number from 0 on, not {text[:60]!r}")
    return value
