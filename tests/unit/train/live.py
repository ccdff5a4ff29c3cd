# SPDX-License-Identifier: Apache-2.0
"""A trainer on the live states of a tiny base model, and what it is made of."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from tests.unit.train import tiny_base
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.compute_options import ComputeOptions
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.live_batches import LiveBatches, corpus_of
from vllm_medusa.train.processes import Processes
from vllm_medusa.train.trainer import Trainer

LENGTH = 60
COMPUTE = ComputeOptions(hidden_states="live", mixed_precision="no")
OPTIONS = FitOptions(
    epochs=10,
    batch_size=4 * LENGTH,
    sequence_length=LENGTH,
    learning_rate=1e-2,
    sampled_vocab=tiny_base.VOCAB,
    measure_every=10,
    save_every=5,
)


@torch.no_grad()
def answered(backbone: LlamaForCausalLM, count: int) -> list[Answer]:
    """What the model answers to random prompts of 4 tokens, 24 tokens each, drawn."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(tiny_base.VOCAB, (count, 4), generator=generator)
    for _ in range(24):
        scores = backbone.lm_head(backbone.model(ids).last_hidden_state[:, -1])
        drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, drawn], 1)
    return [Answer(f"p{n}", row[4:], row[:4]) for n, row in enumerate(ids.tolist())]


def heads(backbone: LlamaForCausalLM) -> TrainableHeads:
    """Two heads of one block over the whole vocabulary."""
    spec = HeadsSpec(
        num_heads=2,
        hidden_size=tiny_base.HIDDEN,
        vocab_size=tiny_base.VOCAB,
        block="residual",
        projection="single",
        draft_vocab_size=tiny_base.VOCAB,
    )
    torch.manual_seed(0)
    every = torch.arange(tiny_base.VOCAB)
    weight = backbone.lm_head.weight.detach()
    return TrainableHeads(spec, every, weight, compute_dtype=torch.float32)


def trainer(
    backbone: LlamaForCausalLM,
    answers: list[Answer],
    folder: Path,
    options: FitOptions = OPTIONS,
    compute: ComputeOptions = COMPUTE,
    processes: Processes | None = None,
) -> Trainer:
    """A fifth of the answers is held out."""
    held = len(answers) // 5
    batches = LiveBatches(
        answers[held:],
        backbone.get_decoder(),
        num_heads=2,
        rows_per_batch=options.rows_per_step(LENGTH),
        sequence_length=LENGTH,
        seed=options.seed,
    )
    tokens = [t for answer in answers[held:] for t in answer.answer_token_ids]
    return Trainer(
        heads(backbone),
        batches,
        torch.tensor(tokens),
        corpus_of(answers[:held], backbone.get_decoder(), LENGTH),
        options,
        folder / "training.pt",
        compute,
        processes or Processes(),
    )
