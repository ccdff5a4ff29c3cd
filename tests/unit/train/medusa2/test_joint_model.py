# SPDX-License-Identifier: Apache-2.0
"""The losses against the formulas of the paper, with all logits at once."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.unit.train.medusa2 import tiny
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.fresh_heads import fresh_heads
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.medusa2.full import FullBackbone
from vllm_medusa.train.medusa2.joint_model import JointModel, LossWeights
from vllm_medusa.train.medusa2.lora import LoraBackbone
from vllm_medusa.train.medusa2.options import AdapterOptions, BaseLoss
from vllm_medusa.train.medusa2.tuned import TunedBackbone
from vllm_medusa.train.options import HeadsOptions
from vllm_medusa.train.packing import PackedSampler

LAMBDA, DECAY, HARD = 0.3, 0.7, 0.4


def moved(backbone: TunedBackbone) -> TunedBackbone:
    """The backbone with its trained weights somewhere else."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in backbone.trainable().values():
            weight += 0.05 * torch.randn(weight.shape)
    return backbone


def make(
    base: Path, kind: str, base_loss: BaseLoss, *, projection: str, hard_weight: float
) -> JointModel:
    model = tiny.load(base)
    backbone: TunedBackbone
    if kind == "lora":
        backbone = LoraBackbone(model, AdapterOptions(rank=4, dropout=0, lm_head=True))
    else:
        backbone = FullBackbone(model, torch.float32)
    fit = FitOptions(head_decay=DECAY, hard_weight=hard_weight)
    options = HeadsOptions(
        num_heads=2, block="residual", projection=projection, draft_vocab=30, rank=8
    )
    lm_head = backbone.original_lm_head().detach()
    tokens = tiny.tokens_of(tiny.written(base, 300))
    heads = fresh_heads(options, lm_head, tokens, torch.float32, fit)
    torch.manual_seed(6)
    with torch.no_grad():
        for weight in heads.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    return JointModel(backbone, heads, fit, base_loss).eval()


def expected(joint: JointModel, batch, hard_weight: float) -> list[torch.Tensor]:
    """[L_LM, L_1, L_2], means over their targets, sequence by sequence."""
    backbone, heads = joint.backbone, joint.heads
    sums = [torch.zeros(()) for _ in range(3)]
    counts = [0, 0, 0]
    for row in range(len(batch.tokens)):
        for segment in range(1, int(batch.segments[row].max()) + 1):
            chosen = batch.segments[row] == segment
            tokens, answer = batch.tokens[row][chosen], batch.answer_mask[row][chosen]
            alone = single(tokens)
            hidden = backbone.hidden(alone)[0]
            original = backbone.original_hidden(alone)[0]
            teacher = (original @ backbone.original_lm_head().T).log_softmax(-1)
            student = (hidden @ backbone.lm_head().T).log_softmax(-1)
            for place in range(len(tokens) - 1):
                if not answer[place + 1]:
                    continue
                counts[0] += 1
                if joint.base_loss == "kl":
                    p = teacher[place].exp()
                    sums[0] = sums[0] + (p * (teacher[place] - student[place])).sum()
                else:
                    sums[0] = sums[0] - student[place, tokens[place + 1]]
                for head in (1, 2):
                    target = place + 1 + head
                    if target >= len(tokens):
                        continue
                    counts[head] += 1
                    logits = head_logits(heads, backbone, hidden[place], head - 1)
                    soft = original[target - 1] @ backbone.original_lm_head().T
                    sums[head] = sums[head] + head_loss(
                        heads, logits, soft, tokens[target], hard_weight
                    )
    return [total / count for total, count in zip(sums, counts, strict=True)]


def single(tokens: torch.Tensor):
    from vllm_medusa.train.packing import PackedBatch

    count = len(tokens)
    return PackedBatch(
        tokens[None],
        torch.arange(count)[None],
        torch.ones(1, count, dtype=torch.int64),
        torch.ones(1, count, dtype=torch.bool),
    )


def head_logits(
    heads: TrainableHeads, backbone: TunedBackbone, hidden: torch.Tensor, head: int
) -> torch.Tensor:
    block = hidden + F.silu(
        heads.blocks["0_weight"][head] @ hidden + heads.blocks["0_bias"][head]
    )
    if heads.spec.projection == "shared":
        return backbone.lm_head()[heads.token_map] @ block
    if heads.spec.projection == "low_rank":
        return heads.projection["up"][head] @ (heads.projection["down"][head] @ block)
    weight = heads.projection["weight"]
    return (weight if weight.dim() == 2 else weight[head]) @ block


def head_loss(
    heads: TrainableHeads,
    logits: torch.Tensor,
    soft: torch.Tensor,
    token: torch.Tensor,
    hard_weight: float,
) -> torch.Tensor:
    scores = logits.log_softmax(-1)
    teacher = soft[heads.token_map].log_softmax(-1)
    kl = (teacher.exp() * (teacher - scores)).sum()
    index = (heads.token_map == token).nonzero()
    if not len(index):  # not one that the heads can guess
        return kl if hard_weight < 1 else torch.zeros(())
    return (1 - hard_weight) * kl - hard_weight * scores[index[0, 0]]


@pytest.mark.parametrize(
    ("kind", "base_loss", "projection", "hard_weight"),
    [
        ("lora", "kl", "shared", 1.0),
        ("lora", "cross-entropy", "single", HARD),
        ("full", "kl", "own", HARD),
        ("full", "cross-entropy", "low_rank", 1.0),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(
    base: Path, kind: str, base_loss: BaseLoss, projection: str, hard_weight: float
) -> None:
    joint = make(base, kind, base_loss, projection=projection, hard_weight=hard_weight)
    moved(joint.backbone)
    batch = PackedSampler(tiny.written(base, 300)[:4], 96, 2, seed=0).batch(0)
    counts = torch.tensor([(batch.targets(n) >= 0).sum() for n in (1, 2, 3)])
    weights = LossWeights(base=1.0, heads=LAMBDA, per_target=1 / counts)
    loss, parts = joint(batch, weights)
    right = expected(joint, batch, hard_weight)
    torch.testing.assert_close(parts, torch.stack(right).detach(), rtol=1e-4, atol=1e-5)
    total = right[0] + LAMBDA * (DECAY * right[1] + DECAY**2 * right[2])
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)
    trained = [p for p in joint.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, trained)
    wanted = torch.autograd.grad(total, trained)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_divergence_is_zero_at_the_start(base: Path, kind: str) -> None:
    joint = make(base, kind, "kl", projection="shared", hard_weight=1.0)
    batch = PackedSampler(tiny.written(base, 300)[:4], 96, 2, seed=0).batch(0)
    weights = LossWeights(base=1.0, heads=0.0, per_target=torch.full((3,), 0.01))
    loss, parts = joint(batch, weights)
    assert abs(loss.item()) < 1e-6
    assert parts[1:].min() > 0.01
    loss.backward()
    for weight in joint.backbone.trainable().values():
        assert weight.grad is None or weight.grad.abs().max() < 1e-6
    moved(joint.backbone)
    loss, _ = joint(batch, weights)
    assert loss.item() > 1e-4


def test_frozen_backbone_gets_no_gradient(base: Path) -> None:
    joint = make(base, "lora", "kl", projection="shared", hard_weight=HARD)
    frozen = JointModel(
        TunedBackbone(tiny.load(base)), joint.heads, FitOptions(hard_weight=HARD), "kl"
    )
    batch = PackedSampler(tiny.written(base, 300)[:4], 96, 2, seed=0).batch(0)
    weights = LossWeights(base=0.0, heads=1.0, per_target=torch.full((3,), 0.01))
    loss, parts = frozen(batch, weights)
    loss.backward()
    assert parts[0] == 0
    assert not frozen.backbone.trainable()
    assert all(p.grad is None for p in frozen.backbone.parameters())
    assert any(p.grad.abs().max() > 0 for p in frozen.heads.parameters())
