# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import pytest

from vllm_medusa.errors import MedusaError
from vllm_medusa.train.compute_options import ComputeOptions
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.medusa2.options import (
    AdapterOptions,
    JointOptions,
    Medusa2Options,
)
from vllm_medusa.train.medusa2.phase import heads_phase, joint_phase
from vllm_medusa.train.medusa2.quality import Bounds
from vllm_medusa.train.medusa2.schedule import sine_ramp


def test_ramp_rises_like_a_quarter_of_a_sine() -> None:
    values = [sine_ramp(0.01, step, 60) for step in range(60)]
    assert values[0] == 0
    assert values[20] == pytest.approx(0.01 * 0.5)  # sin 30°
    assert values[30] == pytest.approx(0.01 * math.sqrt(0.5))
    assert values == sorted(values)
    assert sine_ramp(0.01, 60, 60) == pytest.approx(0.01)


def test_weights_and_rates_of_the_phases_are_the_papers() -> None:
    fit = FitOptions(learning_rate=1e-3)
    alone = heads_phase(JointOptions(), fit)
    assert (alone.base, alone.heads_rate) == (0, 1e-3)
    assert alone.heads_weight(0, 10) == alone.heads_weight(9, 10) == 1
    two = joint_phase(JointOptions(), fit, "lora")
    assert [two.heads_weight(step, 10) for step in (0, 9)] == [0.2, 0.2]
    assert two.base == 1
    one = joint_phase(JointOptions(schedule="one-stage"), fit, "lora")
    assert [one.heads_weight(step, 10) for step in (0, 10)] == [0, 0.01]
    for loss, rate in (("kl", 1e-4), ("cross-entropy", 5e-4)):
        joint = JointOptions(base_loss=loss)  # type: ignore[arg-type]
        phase = joint_phase(joint, fit, "lora")
        assert (phase.backbone_rate, phase.heads_rate) == (rate, 4 * rate)
    chosen = JointOptions(
        heads_weight=0.7, backbone_learning_rate=1e-3, head_multiple=3
    )
    mine = joint_phase(chosen, fit, "full")
    assert mine.heads_weight(5, 10) == 0.7
    assert (mine.backbone_rate, mine.heads_rate) == (1e-3, pytest.approx(3e-3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JointOptions(heads_weight=-1), "heads_weight"),
        (lambda: JointOptions(head_multiple=0), "head_multiple"),
        (lambda: JointOptions(backbone_learning_rate=math.nan), "learning_rate"),
        (lambda: AdapterOptions(rank=0), "lora_rank"),
        (lambda: AdapterOptions(dropout=1), "lora_dropout"),
        (lambda: AdapterOptions(kind="full", lm_head=True), "lora_lm_head"),
        (lambda: Bounds(max_perplexity_increase=-0.1), "max_perplexity_increase"),
        (lambda: Bounds(max_perplexity_increase=math.nan), "max_perplexity_increase"),
        (lambda: Bounds(min_agreement=1.5), "min_agreement"),
        (lambda: options(answers=()), "vllm-medusa distill"),
        (lambda: options(held_out=1), "held_out"),
        (lambda: options(work=Path("out/work")), "must not lie in output"),
        (lambda: options(fit=FitOptions(batch_size=1000)), "multiple of 1024"),
        (lambda: options(fit=FitOptions(average=0.9)), "average"),
        (
            lambda: options(
                compute=ComputeOptions(hidden_states="live", quantization="4bit")
            ),
            "quantised base",
        ),
        (lambda: options(compute=ComputeOptions(fsdp=True)), "fsdp"),
    ],
)
def test_impossible_options_are_refused(make, message: str) -> None:
    with pytest.raises(MedusaError, match=message):
        make()


def options(**changes: object) -> Medusa2Options:
    values: dict[str, object] = {
        "model": "base",
        "output": Path("out"),
        "work": Path("work"),
        "answers": (Path("answers.jsonl"),),
    }
    return Medusa2Options(**(values | changes))  # type: ignore[arg-type]
