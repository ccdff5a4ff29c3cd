# SPDX-License-Identifier: Apache-2.0
"""How a request's options follow from its parameters and the engine's."""

from __future__ import annotations

from typing import Any

import pytest
from vllm import SamplingParams

from vllm_medusa.acceptance import EXACT, Acceptance
from vllm_medusa.errors import ConfigError
from vllm_medusa.request_options import RequestOptions, max_nodes


def asked(engine: Acceptance = EXACT, temperature: float = 1.0, **extra: Any) -> Any:
    params = SamplingParams(temperature=temperature, extra_args=extra or None)
    return RequestOptions.of(params, engine).acceptance


def test_the_engines_unless_asked() -> None:
    typical = Acceptance(scheme="typical", epsilon=0.2)
    assert asked(typical) == typical
    assert asked(typical, medusa_acceptance="exact").scheme == "exact"
    assert asked(typical, medusa_delta="none") == typical.model_copy(
        update={"delta": None}
    )
    assert asked(medusa_acceptance="typical", medusa_epsilon=0.5) == Acceptance(
        scheme="typical", epsilon=0.5
    )
    assert asked(medusa_acceptance="typical", medusa_first_token="greedy") == (
        Acceptance(scheme="typical", first_token="greedy")
    )


def test_keys_of_others_are_left_alone() -> None:
    assert asked(kv_transfer_params={"x": 1}, medusa_epsilon=1e-3).epsilon == 1e-3


def test_without_temperature_every_scheme_is_exact() -> None:
    for scheme in ("rejection", "typical"):
        engine = Acceptance(scheme=scheme)
        assert asked(engine, temperature=0.0) == EXACT


def test_rejection_needs_an_engine_for_it() -> None:
    engine = Acceptance(scheme="rejection")
    assert asked(engine).scheme == "rejection"
    assert asked(engine, medusa_acceptance="typical").scheme == "typical"
    with pytest.raises(ConfigError, match="start it with acceptance=rejection"):
        asked(medusa_acceptance="rejection")


@pytest.mark.parametrize("nodes", [0, 3, 10**9])
def test_number_of_nodes(nodes: int) -> None:
    params = SamplingParams(extra_args={"medusa_num_speculative_tokens": nodes})
    assert RequestOptions.of(params, EXACT) == RequestOptions(EXACT, nodes)
    assert max_nodes(params) == nodes


def test_the_whole_tree_unless_asked() -> None:
    for params in (
        SamplingParams(),
        SamplingParams(extra_args={}),
        SamplingParams(extra_args={"medusa_epsilon": 0.1}),
    ):
        assert RequestOptions.of(params, EXACT).max_nodes is None
        assert max_nodes(params) is None
    assert max_nodes(None) is None


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"medusa_num_speculative_tokens": -1},
            "medusa_num_speculative_tokens is '-1': it must be a whole number, 0 for",
        ),
        ({"medusa_num_speculative_tokens": 2.0}, "_tokens is '2.0'"),
        ({"medusa_num_speculative_tokens": False}, "_tokens is 'False'"),
        ({"medusa_num_speculative_tokens": "3"}, "_tokens is '3'"),
        ({"medusa_acceptance": "loose"}, "medusa_acceptance is 'loose': it must be"),
        ({"medusa_acceptance": ["exact"]}, "medusa_acceptance is .*: it must be"),
        ({"medusa_epsilon": 0}, "medusa_epsilon is '0': .* between 0 and 1"),
        ({"medusa_epsilon": 1.0}, "medusa_epsilon is '1.0': .* between 0 and 1"),
        ({"medusa_epsilon": "0.1"}, "medusa_epsilon is '0.1': .* a number"),
        ({"medusa_epsilon": True}, "medusa_epsilon is 'True'"),
        ({"medusa_epsilon": float("nan")}, "medusa_epsilon is 'nan'"),
        ({"medusa_delta": -0.1}, "medusa_delta is '-0.1': .* above 0, or \"none\""),
        ({"medusa_delta": "None"}, "medusa_delta is 'None'"),
        ({"medusa_first_token": "best"}, "medusa_first_token is 'best': it must be"),
        ({"medusa_eps": 0.1}, r"'medusa_eps' \(did you mean 'medusa_epsilon'\?\)"),
        ({"medusa_acceptance": "x" * 999}, "x{58}…"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_can_not_be(
    extra: dict[str, Any], message: str, temperature: float
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        asked(temperature=temperature, **extra)
    assert len(str(caught.value)) < 300
