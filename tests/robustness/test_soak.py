# SPDX-License-Identifier: Apache-2.0
"""A short soak test: random requests, cancellations and preemptions, no mismatch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from vllm import LLM

from benchmarks.soaking.answers import Answer
from benchmarks.soaking.arrivals import Traffic, arrivals
from benchmarks.soaking.asks import Ask, Material, make_asks, sampling_params
from benchmarks.soaking.stepped import engine_leftovers, run_stepped
from benchmarks.soaking.tally import Tally
from tests.engine.support.engines import engine, generate, metrics, stats
from tests.engine.support.heads import fit_heads, save_fitted
from tests.engine.support.models import VOCAB_SIZE, build_model
from tests.engine.support.prompts import random_prompts
from tests.runner import sample
from tests.serving.support.processes import environment

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
LONGEST_PROMPT = sample(150, 100)
LONGEST_ANSWER = sample(60, 20)
NUM_ASKS = sample(100, 26)
NUM_REQUESTS = sample(300, 32)
# Some three requests of the longest kind, in blocks of 32 tokens.
NUM_BLOCKS = sample(18, 11)
GRAMMARS = {"structured_outputs_config": {"backend": "xgrammar"}}
TREES = {
    "optimal": {"tree": "optimal:12"},
    "beam": {
        "tree": "beam:4x3",
        "num_speculative_tokens_per_batch_size": [[1, 2, 12], [3, 4, 4], [5, 6, 0]],
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and its heads."""
    folder = tmp_path_factory.mktemp("soak")
    model = build_model("llama", folder / "model")
    return model, save_fitted(fit_heads(model), folder / "heads")


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    longest = LONGEST_PROMPT
    texts = random_prompts(30, VOCAB_SIZE, shortest=longest, longest=longest, seed=1)
    prefixes = random_prompts(3, VOCAB_SIZE, shortest=35, longest=70, seed=2)
    stops = ("a", "e", "s", "xy", "q", "d")
    return make_asks(
        Material(texts, prefixes, VOCAB_SIZE, longest, LONGEST_ANSWER, stops),
        NUM_ASKS,
        seed=1,
    )


@pytest.fixture(scope="module")
def plain(tiny: tuple[Path, Path], asks: list[Ask]) -> dict[str, Answer]:
    exact = [ask for ask in asks if ask.is_exact]
    answers = {ask.name: Answer(ask.params.get("n", 1)) for ask in exact}
    whole = {"enable_prefix_caching": False, "enable_chunked_prefill": False}
    with engine(tiny[0], **whole, **GRAMMARS) as llm:
        outputs = generate(
            llm,
            [ask.prompt for ask in exact],
            [sampling_params(ask.params) for ask in exact],
        )
    for ask, output in zip(exact, outputs, strict=True):
        answers[ask.name].add(output)
    return answers


def assert_idle(llm: LLM) -> None:
    """Nothing is left of any request, and every block is free."""
    assert not any(engine_leftovers(llm).values()), engine_leftovers(llm)
    (left,) = llm.collective_rpc("soak_leftovers")
    assert not any(left.values()), left
    assert llm.reset_prefix_cache()


@pytest.mark.parametrize("tree", sample(["optimal", "beam"], ["beam"]))
def test_stepped(
    tiny: tuple[Path, Path], asks: list[Ask], plain: dict[str, Answer], tree: str
) -> None:
    model, heads = tiny
    tally = Tally(plain)
    with engine(
        model,
        {"model": heads, **TREES[tree]},
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        max_num_batched_tokens=96,
        max_num_seqs=sample(8, 6),
        num_gpu_blocks_override=NUM_BLOCKS,
        scheduling_policy="priority",
        worker_extension_cls="benchmarks.soaking.probe.SoakProbe",
        **GRAMMARS,
    ) as llm:
        assert_idle(llm)
        coming = arrivals(asks, Traffic(rate=0.5), seed=0)
        run_stepped(llm, coming, NUM_REQUESTS, tally, max_waiting=24)
        assert not tally.faults
        assert_idle(llm)
        counters, found = stats(llm), metrics(llm)
    assert tally.requests == NUM_REQUESTS
    assert tally.cancelled > 0
    assert counters["accepted"] > 0
    assert counters["moved"] > 0
    assert found["vllm:num_preemptions"] > 0
    assert found["vllm:prefix_cache_hits"] > 0


@pytest.mark.runner("v1", reason="AsyncLLM's processes have no interpreter")
@pytest.mark.slow
def test_served(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    """The command itself, with the engine as a server runs it."""
    output = tmp_path / "soak.json"
    options = {
        "model": tiny[0],
        "heads": tiny[1],
        "tree": "optimal:8",
        "max-model-len": 320,
        "longest-answer": 40,
        "asks": 50,
        "requests": 150,
        "rate": 30,
        "bind": "nobind",
        "output": output,
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.soak"),
            *(f"--{name}={value}" for name, value in options.items()),
        ],
        cwd=ROOT,
        env=environment({"VLLM_LOGGING_LEVEL": "ERROR"}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["off"] == []
    assert found["requests"] == 150
    assert found["mismatches"] == 0
