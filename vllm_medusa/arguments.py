# SPDX-License-Identifier: Apache-2.0
"""How `--speculative-model medusa:…` and `method: medusa` reach vLLM.

Three functions of `vllm.engine.arg_utils.EngineArgs` are wrapped. All three
return what vLLM returns unless Medusa was asked for.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

from vllm.engine.arg_utils import EngineArgs

from vllm_medusa.errors import ConfigError
from vllm_medusa.wording import show

FLAG = "--speculative-model"
METHOD = "medusa"


def install() -> None:
    """Wrap `add_cli_args`, `from_cli_args` and `create_engine_config`."""
    _wrap_add_cli_args()
    _wrap_from_cli_args()
    _wrap_create_engine_config()


def requested_options(engine_args: EngineArgs) -> dict[str, Any]:
    """Merge `speculative_config` with the flags `--spec-method`, `--spec-model` and
    `--spec-tokens`, as `EngineArgs.create_speculative_config` does.

    Raises:
        ConfigError: a Medusa option is given both ways.
    """
    given = engine_args.speculative_config or {}
    if not isinstance(given, dict):
        return {}  # vLLM says what it thinks of that
    options = {
        key.replace("-", "_") if isinstance(key, str) else key: value
        for key, value in given.items()
    }
    flags = {
        "method": engine_args.spec_method,
        "model": engine_args.spec_model,
        "num_speculative_tokens": engine_args.spec_tokens,
    }
    flags = {key: value for key, value in flags.items() if value is not None}
    if METHOD not in (options.get("method"), flags.get("method")):
        return options
    for key in flags.keys() & options.keys():
        raise ConfigError(
            f"{key} is given by a --spec-* flag ({show(flags[key])}) and in "
            f"speculative_config ({show(options[key])}): keep one of them"
        )
    return {**options, **flags}


def _wrap_add_cli_args() -> None:
    upstream = EngineArgs.add_cli_args

    @functools.wraps(upstream)
    def add_cli_args(parser: Any) -> Any:
        parser = upstream(parser)
        group = parser.add_argument_group(
            title="Medusa",
            description="Speculative decoding with Medusa heads (vllm-medusa).",
        )
        group.add_argument(
            FLAG,
            type=str,
            default=None,
            metavar="medusa:HEADS[@REVISION][?KEY=VALUE&...]",
            help="Decode with the Medusa heads of a folder or Hugging Face id, "
            "for example medusa:FasterDecoding/medusa-vicuna-7b-v1.3 or "
            "'medusa:./heads?tree=1x7x6'. Keys are the fields of "
            "vllm_medusa.MedusaConfig.",
        )
        return parser

    EngineArgs.add_cli_args = staticmethod(add_cli_args)


def _wrap_from_cli_args() -> None:
    upstream = EngineArgs.from_cli_args.__func__

    @functools.wraps(upstream)
    def from_cli_args(cls: type[EngineArgs], args: argparse.Namespace) -> EngineArgs:
        engine_args = upstream(cls, args)
        text = getattr(args, "speculative_model", None)
        if text is None:
            return engine_args
        if engine_args.speculative_config is not None:
            raise ConfigError(
                f"{FLAG} {show(text, 200)} and --speculative-config "
                f"{show(engine_args.speculative_config, 200)} were both given: "
                "keep one of them"
            )
        from vllm_medusa.config import MedusaConfig

        config = MedusaConfig.parse(text)
        engine_args.speculative_config = config.to_speculative_config()
        # Further API servers get the arguments as this process leaves them, and read
        # them before they load plugins.
        args.speculative_config = dict(engine_args.speculative_config)
        args.speculative_model = None
        return engine_args

    EngineArgs.from_cli_args = classmethod(from_cli_args)


def _wrap_create_engine_config() -> None:
    upstream = EngineArgs.create_engine_config

    @functools.wraps(upstream)
    def create_engine_config(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:
        requested = requested_options(self)
        if requested.get("method") != METHOD:
            return upstream(self, *args, **kwargs)
        from vllm_medusa.engine_config import complete_vllm_config, prepare_engine_args
        from vllm_medusa.refusals import verify_vllm_config

        prepare_engine_args(self, requested)
        vllm_config = upstream(self, *args, **kwargs)
        verify_vllm_config(vllm_config)
        complete_vllm_config(vllm_config)
        return vllm_config

    EngineArgs.create_engine_config = create_engine_config
