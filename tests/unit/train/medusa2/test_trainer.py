# SPDX-License-Identifier: Apache-2.0
"""The loop: rates, parts, resuming, stopping."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.train.medusa2 import tiny
from vllm_medusa.errors import ConfigError, QualityError
from vllm_medusa.train.fresh_heads import fresh_heads
from vllm_medusa.train.medusa2.full import FullBackbone
from vllm_medusa.train.medusa2.joint_model import JointModel
from vllm_medusa.train.medusa2.lora import LoraBackbone
from vllm_medusa.train.medusa2.options import Medusa2Options
from vllm_medusa.train.medusa2.phase import joint_phase
from vllm_medusa.train.medusa2.trainer import JointTrainer
from vllm_medusa.train.processes import Processes


class InterruptionError(Exception):
    pass


def nothing(step: int, model: JointModel) -> dict[str, Any]:
    return {}


def trainer(
    base: Path,
    folder: Path,
    measure: Callable[[int, JointModel], dict[str, Any]] = nothing,
    processes: Processes = Processes(),  # noqa: B008 (frozen)
    **changes: Any,
) -> JointTrainer:
    answers = tiny.written(base, 300)
    options: Medusa2Options = tiny.options(
        base, (Path("x"),), folder, **({"schedule": "one-stage"} | changes)
    )
    torch.manual_seed(0)
    model = tiny.load(base)
    lm_head = model.get_output_embeddings().weight.detach().clone()
    backbone = (
        FullBackbone(model, torch.float32)
        if options.adapters.kind == "full"
        else LoraBackbone(model, options.adapters)
    )
    tokens = tiny.tokens_of(answers)
    heads = fresh_heads(options.heads, lm_head, tokens, torch.float32, options.fit)
    return JointTrainer(
        JointModel(backbone, heads, options.fit, options.joint.base_loss),
        answers,
        joint_phase(options.joint, options.fit, options.adapters.kind),
        options,
        folder / "joint.pt",
        measure,
        processes,
    )


def trained(run: JointTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in run.model.named_parameters() if p.requires_grad}


def test_heads_learn_at_a_multiple_of_the_backbones_rate(
    base: Path, tmp_path: Path
) -> None:
    run = trainer(
        base, tmp_path, backbone_learning_rate=3e-4, head_multiple=4, warmup=0.5
    )
    rates = []
    run.fit(lambda *_: rates.append([g["lr"] for g in run.optimizer.param_groups]))
    heads, backbone = run.optimizer.param_groups
    ids = {id(p) for p in run.model.heads.parameters()}
    assert {id(p) for p in heads["params"]} == ids
    ids = {id(p) for p in run.model.backbone.trainable().values()}
    assert {id(p) for p in backbone["params"]} == ids
    assert all(head == pytest.approx(4 * rate) for head, rate in rates)
    first, peak, last = rates[0][1], max(rate for _, rate in rates), rates[-1][1]
    assert first < 0.5 * 3e-4 < peak < 3e-4
    assert last < 0.3 * 3e-4


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_resumed_run_gives_the_same_weights(
    base: Path, tmp_path: Path, kind: str
) -> None:
    changes = {"kind": kind, "measure_every": 4, "epochs": 0.6}
    whole = trainer(base, tmp_path / "whole", **changes)
    start = {name: value.clone() for name, value in trained(whole).items()}
    whole.fit()

    def interrupt(step: int, num_steps: int) -> None:
        if step == 6:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        trainer(base, tmp_path / "cut", **changes).fit(interrupt)
    resumed = trainer(base, tmp_path / "cut", **changes)
    assert resumed.step == 4
    steps = []
    resumed.fit(lambda step, _: steps.append(step))
    assert steps == list(range(5, whole.num_steps + 1))
    assert len(steps) > 4
    for name, value in trained(whole).items():
        assert trained(resumed)[name].equal(value), name
    assert any(not value.equal(start[name]) for name, value in trained(whole).items())
    assert resumed.history == whole.history


def test_parts_of_a_batch_add_up_to_the_whole(base: Path, tmp_path: Path) -> None:
    gradients = []
    for parts in (1, 4):
        run = trainer(
            base,
            tmp_path / str(parts),
            gradient_accumulation_steps=parts,
            dropout=0.0,
            kind="full",
            epochs=0.1,
        )
        run._one_step()
        gradients.append([p.grad.clone() for p in trained_parameters(run)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def trained_parameters(run: JointTrainer) -> list[torch.nn.Parameter]:
    return [p for p in run.model.parameters() if p.requires_grad]


def test_what_fails_the_measurement_is_not_saved(base: Path, tmp_path: Path) -> None:
    def stop(step: int, model: JointModel) -> dict[str, Any]:
        assert not model.training
        if step > 5:
            raise QualityError("too far")
        return {"step": step}

    run = trainer(base, tmp_path, stop)
    with pytest.raises(QualityError, match="too far"):
        run.fit()
    assert run.step == 10
    kept = trainer(base, tmp_path)
    assert kept.step == 5
    assert [point["step"] for point in kept.history] == [5]


def test_checkpoint_of_another_run_is_refused(base: Path, tmp_path: Path) -> None:
    run = trainer(base, tmp_path, epochs=0.2)
    run.fit()
    again = trainer(base, tmp_path, epochs=0.2, max_perplexity_increase=9.0)
    assert again.step == again.num_steps  # bounds may change
    with pytest.raises(ConfigError, match="other options or other data"):
        trainer(base, tmp_path, epochs=0.2, heads_weight=0.5)
    with pytest.raises(ConfigError, match="other options or other data"):
        trainer(base, tmp_path, epochs=0.2, rank=8)
    (tmp_path / "joint.pt").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="is damaged"):
        trainer(base, tmp_path, epochs=0.2)


def test_a_batch_that_cannot_be_shared_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4 rows can't be shared evenly"):
        trainer(base, tmp_path, gradient_accumulation_steps=3)
    with pytest.raises(ConfigError, match="by 8 processes"):
        trainer(base, tmp_path, processes=replace(Processes(), count=8))


def test_activations_computed_again_give_the_same_gradients(
    base: Path, tmp_path: Path
) -> None:
    gradients = []
    for checkpointing in (False, True):
        run = trainer(base, tmp_path / str(checkpointing), checkpointing=checkpointing)
        run._one_step()
        gradients.append([p.grad.clone() for p in trained_parameters(run)])
    assert run.model.backbone.model.is_gradient_checkpointing
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_products_in_bfloat16_train_weights_in_float32(
    base: Path, tmp_path: Path, kind: str
) -> None:
    losses = {}
    for precision in ("no", "bf16"):
        run = trainer(
            base,
            tmp_path / precision,
            kind=kind,
            mixed_precision=precision,
            epochs=0.2,
            heads_weight=1.0,
        )
        run.fit()
        losses[precision] = run.history[-1]["loss"]
        assert all(p.dtype == torch.float32 for p in trained_parameters(run))
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["bf16"] != losses["no"]
