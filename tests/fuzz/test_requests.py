# SPDX-License-Identifier: Apache-2.0
"""Hostile fields of requests and of `speculative_config`, inside vLLM's own checks."""

from __future__ import annotations

import copy
from random import Random
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.input_processor import InputProcessor

from tests.fuzz.option_values import KEYS, OBJECTS, VALUES
from tests.fuzz.run import CASES, SEED
from vllm_medusa import compatibility, engine_config, plugin, request_validation
from vllm_medusa.acceptance import Acceptance
from vllm_medusa.arguments import requested_options
from vllm_medusa.config import MedusaConfig
from vllm_medusa.errors import MedusaError
from vllm_medusa.request_options import KEYS as REQUEST_KEYS
from vllm_medusa.request_options import RequestOptions

_GOOD = ("exact", "typical", 0.1, 0.5, "none", "greedy", 0, 3)
_OTHERS = (
    "medusa_",
    "medusa_tree",
    "medusa_epsilonn",
    "other",
    "",
    "medusa_" + "x" * 10**6,
)


@pytest.fixture(scope="module", autouse=True)
def _plugin():
    plugin.register()


def _processor(monkeypatch) -> InputProcessor:
    """With our checks around none: vLLM's own want a loaded model's configuration."""
    monkeypatch.setattr(InputProcessor, "_validate_params", lambda *arguments: None)
    request_validation._wrap_validate_params()
    processor = InputProcessor.__new__(InputProcessor)
    processor.vllm_config = SimpleNamespace()
    monkeypatch.setattr(engine_config, "medusa_options", lambda config: {})
    monkeypatch.setattr(
        engine_config, "medusa_config", lambda config: MedusaConfig(heads="x")
    )
    return processor


def _extra_args(random: Random) -> object:
    if random.random() < 0.03:
        return random.choice(OBJECTS)
    values = (*_GOOD, *_GOOD, *OBJECTS)
    keys = (*REQUEST_KEYS, *REQUEST_KEYS, *_OTHERS)
    fields: dict[object, object] = {
        random.choice(keys): random.choice(values) for _ in range(random.randint(1, 3))
    }
    if random.random() < 0.05:
        fields[random.choice((3, None, (), b"medusa_tree"))] = random.choice(values)
    if random.random() < 0.01:
        fields |= {f"field {number}": number for number in range(5000)}
    return fields


def test_extra_args_get_options_or_vllms_own_error(monkeypatch):
    random = Random(f"{SEED}:requests")
    processor = _processor(monkeypatch)
    seen = {"taken": 0, "refused": 0}
    for number in range(CASES or 4000):
        params = SamplingParams(temperature=random.choice((0.0, 1.0)))
        params.extra_args = _extra_args(random)
        try:
            processor._validate_params(params, ("generate",))
            seen["taken"] += 1
        except VLLMValidationError as error:
            seen["refused"] += 1
            message = str(error)
            assert 10 < len(message) < 1000, (number, message)
            assert message.isprintable(), (number, message)
        else:
            options = RequestOptions.of(params, Acceptance())
            assert options.max_nodes is None or type(options.max_nodes) is int
    print(seen)
    assert min(seen.values()) > 100


def test_arrays_in_extra_args():
    """They compare element by element, and have no truth value."""
    for value in (torch.ones(3), torch.ones(3).numpy()):
        for key in REQUEST_KEYS:
            params = SamplingParams()
            params.extra_args = {key: value}
            with pytest.raises(MedusaError):
                RequestOptions.of(params, Acceptance())


def test_speculative_config_of_engine_arguments(tmp_path, monkeypatch):
    """Up to the heads themselves, which are not there."""
    random = Random(f"{SEED}:engine")
    monkeypatch.setattr(compatibility, "require", lambda: None)  # takes its time
    given = EngineArgs(model=str(tmp_path))
    refused = 0
    for number in range(min(CASES, 20_000) or 1500):
        options = {"method": "medusa", "model": "./none"}
        for key in random.choices(KEYS, k=random.randint(0, 2)):
            name = key.replace("_", "-") if random.random() < 0.1 else key
            options[name] = random.choice((*OBJECTS, *VALUES[key]))
        arguments = copy.copy(given)
        arguments.speculative_config = options
        try:
            engine_config.prepare_engine_args(arguments, requested_options(arguments))
        except MedusaError as error:
            refused += 1
            assert len(str(error)) < 8000, number
            assert str(error).isprintable(), (number, str(error)[:500])
        else:
            # Only the heads that come with the package are there.
            assert options.get("heads", options["model"]) == "default"
    assert refused > 500


@pytest.mark.parametrize("given", [[], ["medusa"], "medusa", 3, {3: 4}, {None: {}}])
def test_what_is_no_mapping_is_left_to_vllm(tmp_path, given):
    arguments = EngineArgs(model=str(tmp_path))
    arguments.speculative_config = given
    assert requested_options(arguments).get("method") != "medusa"
