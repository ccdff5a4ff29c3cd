# SPDX-License-Identifier: Apache-2.0
"""Other weights in a running engine: of the base model, and of the heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from vllm import LLM
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, token_ids
from tests.engine.support.models import build_model
from tests.runner import sample
from vllm_medusa.checkpoint import save_heads
from vllm_medusa.errors import CheckpointError
from vllm_medusa.heads.spec import HeadsSpec

pytestmark = pytest.mark.engine

NUM_TOKENS = sample(24, 10)
COUNT = sample(12, 3)
NUM_HEADS, DRAFT_VOCAB = 2, 200


def save_shared(
    folder: Path, model: Path, *, seed: int, num_heads: int = NUM_HEADS
) -> Path:
    """Heads without projections of their own, over a part of the vocabulary.

    A block of zeros returns the hidden state: the best tokens of a head are then those
    of the base model's LM head, and tell whose rows the head has.
    """
    lm_head = load_file(model / "model.safetensors")["lm_head.weight"]
    vocab_size, hidden_size = lm_head.shape
    generator = torch.Generator().manual_seed(seed)
    tensors = {"token_map": torch.randperm(vocab_size, generator=generator)}
    tensors["token_map"] = tensors["token_map"][:DRAFT_VOCAB]
    for head in range(num_heads):
        name = f"blocks.{head}.layers.0"
        tensors[f"{name}.weight"] = torch.zeros(hidden_size, hidden_size)
        tensors[f"{name}.bias"] = torch.zeros(hidden_size)
    spec = HeadsSpec(
        num_heads, hidden_size, vocab_size=vocab_size, draft_vocab_size=DRAFT_VOCAB
    )
    save_heads(folder, spec, tensors)
    return folder


def expected(model: Path, heads: Path) -> torch.Tensor:
    """What heads of `save_shared` guess for the states of `guesses`."""
    lm_head = load_file(model / "model.safetensors")["lm_head.weight"]
    token_map = load_file(heads / "model.safetensors")["token_map"]
    logits = states(lm_head.shape[1]) @ lm_head[token_map].T
    best = token_map[logits.topk(3, dim=-1).indices]
    return best[:, None].expand(-1, NUM_HEADS, -1)


def states(hidden_size: int) -> torch.Tensor:
    """Hidden states to guess from, [8, hidden_size]."""
    return torch.randn(8, hidden_size, generator=torch.Generator().manual_seed(5))


def guesses(llm: LLM) -> torch.Tensor:
    """The best tokens of the engine's heads, [8, NUM_HEADS, 3]."""

    def ask(worker: Any) -> torch.Tensor:
        heads = worker._proposer.heads
        hidden = states(heads.spec.hidden_size)
        return heads.best_tokens(hidden, NUM_HEADS, 3).clone()

    (result,) = llm.collective_rpc(ask)
    return result


class Transfer:
    """A weight transfer engine that takes the weights from a file."""

    supports_draft_weight_update = False

    def __init__(self, worker: Any) -> None:
        self.model = worker.model_runner.get_model()
        self.config = worker.model_config

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, info: dict[str, str]) -> None:
        self.model.load_weights(iter(load_file(info["file"]).items()))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.config)

    def reset_weight_update_target(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


@dataclass(frozen=True)
class Bases:
    """Two base models of one shape, with heads that share their LM head."""

    first: Path
    second: Path
    heads: Path
    other_heads: Path
    second_text: list[list[int]]


@pytest.fixture(scope="module")
def bases(
    llama: TinyModel, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bases]:
    folder = tmp_path_factory.mktemp("reload")
    second = build_model("llama", folder / "second", seed=1)
    with engine(second) as llm:
        text = token_ids(generate(llm, prompts[:COUNT], greedy(NUM_TOKENS)))
    yield Bases(
        llama.path,
        second,
        save_shared(folder / "heads", llama.path, seed=0),
        save_shared(folder / "other", llama.path, seed=1),
        text,
    )


def test_base_and_heads(
    bases: Bases,
    prompts: list[list[int]],
    plain: list[list[int]],
    tmp_path: Path,
) -> None:
    def text() -> list[list[int]]:
        llm.reset_prefix_cache()
        return token_ids(generate(llm, prompts[:COUNT], greedy(NUM_TOKENS)))

    first_text = [answer[:NUM_TOKENS] for answer in plain[:COUNT]]
    with engine(
        bases.first, {"model": bases.heads, "tree": "3x2"}, enable_prefix_caching=True
    ) as llm:
        assert text() == first_text != bases.second_text
        assert torch.equal(guesses(llm), expected(bases.first, bases.heads))

        # Another base model, from disk: the heads have its rows.
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(bases.second)})
        assert text() == bases.second_text
        assert torch.equal(guesses(llm), expected(bases.second, bases.heads))

        # Other heads for it.
        path = str(bases.other_heads)
        llm.collective_rpc("reload_medusa_heads", kwargs={"path": path})
        assert text() == bases.second_text
        other = expected(bases.second, bases.other_heads)
        assert torch.equal(guesses(llm), other)

        # What can't be taken leaves everything as it is.
        more = save_shared(tmp_path / "more", bases.first, seed=2, num_heads=3)
        damaged = save_shared(tmp_path / "damaged", bases.first, seed=2)
        weights = damaged / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
        for bad in (more, damaged, tmp_path / "missing"):
            with pytest.raises(CheckpointError, match=str(bad)):
                llm.collective_rpc("reload_medusa_heads", args=(str(bad),))
        assert torch.equal(guesses(llm), other)

        # The first base model again, through a trainer's transfer.
        def connect(wrapper: Any) -> None:
            wrapper.worker.weight_transfer_engine = Transfer(wrapper.worker)

        llm.collective_rpc(connect)
        llm.collective_rpc("start_weight_update")
        file = str(bases.first / "model.safetensors")
        llm.collective_rpc("update_weights", args=({"file": file},))
        llm.collective_rpc("finish_weight_update")
        assert text() == first_text
        assert torch.equal(guesses(llm), expected(bases.first, bases.other_heads))

        # Without a path: the last heads, as they are on disk by now.
        save_shared(bases.other_heads, bases.first, seed=3)
        llm.collective_rpc("reload_medusa_heads")
        assert torch.equal(guesses(llm), expected(bases.first, bases.other_heads))


def test_own_projections(llama: TinyModel, tiny: Any, tmp_path: Path) -> None:
    """All weights of heads that share nothing are replaced."""

    def tensors(worker: Any) -> dict[str, torch.Tensor]:
        heads = worker._proposer.heads
        return {name: buffer.clone() for name, buffer in heads.named_buffers()}

    stored = load_file(llama.heads / "model.safetensors")
    spec = HeadsSpec(
        4, 96, vocab_size=stored["lm_heads.0.weight"].shape[0], projection="own"
    )
    save_heads(tmp_path / "negative", spec, {k: -v for k, v in stored.items()})
    with engine(llama.path, {"model": llama.heads, "tree": "3"}) as llm:
        (before,) = llm.collective_rpc(tensors)
        llm.collective_rpc("reload_medusa_heads", args=(str(tmp_path / "negative"),))
        (after,) = llm.collective_rpc(tensors)
    assert before.keys() == after.keys() and len(before) == 3
    for name, buffer in before.items():
        assert torch.equal(after[name], -buffer), name


@pytest.mark.runner("v1", reason="loading knows no runner")
def test_dummy_weights(llama: TinyModel, prompts: list[list[int]]) -> None:
    """`--load-format dummy`: random weights for the base model, heads from disk."""
    texts = []
    for medusa in (None, {"model": llama.heads, "tree": "3x2"}):
        with engine(llama.path, medusa, load_format="dummy") as llm:
            texts.append(token_ids(generate(llm, prompts[:COUNT], greedy(NUM_TOKENS))))
    assert texts[0] == texts[1]
