# SPDX-License-Identifier: Apache-2.0
"""The training loop: resumable, and the same with or without an interruption."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.files import atomic_path
from vllm_medusa.train.batches import BatchSampler
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.loss import MixedCrossEntropy, head_weights
from vllm_medusa.train.measure import rank_of_truth, top_1
from vllm_medusa.train.store import Corpus
from vllm_medusa.train.vocabulary import inverse_map, sample_vocabulary


@dataclass(frozen=True)
class FitOptions:
    """How heads are fitted.

    Attributes:
        epochs: passes over the corpus.
        batch_size: positions per step.
        run_length: neighbouring positions taken together (see `BatchSampler`).
        learning_rate: peak of the cosine schedule.
        warmup: share of the steps over which the rate rises from 0.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        hard_weight: share of the true token in the target, the rest is the base
            model's distribution.
        head_decay: head k's loss counts head_decay^k.
        sampled_vocab: tokens the softmax of one step runs over.
        dropout: on the inner activations of "mlp" blocks.
        average: decay of the running average of the weights, which is what is kept
            in the end; 0 keeps the last weights.
        seed: of initial weights, batches, sampled tokens and dropout.
        measure_every: steps between two points of the curve.
        save_every: steps between two checkpoints.

    Raises:
        ConfigError: a value is out of its range.
    """

    epochs: float = 3.0
    batch_size: int = 1024
    run_length: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.04
    weight_decay: float = 0.01
    clip: float = 1.0
    hard_weight: float = 0.1
    head_decay: float = 0.8
    sampled_vocab: int = 2048
    dropout: float = 0.0
    average: float = 0.0
    seed: int = 0
    measure_every: int = 100
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "run_length",
            "learning_rate",
            "clip",
            "head_decay",
            "sampled_vocab",
            "measure_every",
            "save_every",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0: {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is 0 to {2**31 - 1}, not {self.seed}")
        for name in ("warmup", "hard_weight", "dropout", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is 0 to 1, not {getattr(self, name)}")
        if self.batch_size % self.run_length:
            raise ConfigError(
                f"batch_size {self.batch_size} must be a multiple of run_length "
                f"{self.run_length}"
            )


class Trainer:
    """Fits heads to a corpus.

    Everything random in a step is drawn from (seed, step), so a run that goes on
    from a checkpoint does what it would have done uninterrupted.

    Args:
        heads: fresh heads; changed in place.
        corpus: answers to train on.
        held_out: answers whose accuracy the curve shows.
        options: how.
        checkpoint: file of the running state; read if it is there.

    Raises:
        ConfigError: the checkpoint is of other options or other data, or damaged.
    """

    def __init__(
        self,
        heads: TrainableHeads,
        corpus: Corpus,
        held_out: Corpus,
        options: FitOptions,
        checkpoint: Path,
    ) -> None:
        self.heads = heads
        self.held_out = held_out
        self.options = options
        self.checkpoint = checkpoint
        spec = heads.spec
        self.sampler = BatchSampler(
            corpus,
            num_heads=spec.num_heads,
            batch_size=options.batch_size,
            run_length=options.run_length,
            seed=options.seed,
        )
        self.num_steps = max(1, round(options.epochs * self.sampler.steps_per_epoch))
        assert spec.vocab_size is not None
        self.draft_index = inverse_map(heads.token_map.cpu(), spec.vocab_size)
        self.head_weights = head_weights(spec.num_heads, options.head_decay)
        self.parameters = list(heads.parameters())
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=options.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=options.weight_decay,
        )
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._loss_sum = torch.zeros(spec.num_heads, dtype=torch.float64)
        self._fingerprint = self._identify(corpus)
        if checkpoint.is_file():
            self._restore()

    def fit(self, on_step: Callable[[int, int], None] = lambda step, of: None) -> None:
        """Train to the end; `on_step(step, num_steps)` is called after each step.

        The heads then hold the averaged weights if the options ask for them.
        """
        while self.step < self.num_steps:
            self._loss_sum += self._one_step()
            self.step += 1
            options = self.options
            last = self.step == self.num_steps
            if self.step % options.measure_every == 0 or last:
                self._measure()
            if self.step % options.save_every == 0 or last:
                self._save()
            on_step(self.step, self.num_steps)
        if self.options.average:
            self._swap_average()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a fiftieth of the peak."""
        rise = max(1, round(self.options.warmup * self.num_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.num_steps))
        share = min(1.0, (step + 1) / rise) * (0.02 + 0.98 * cosine)
        return self.options.learning_rate * share

    def _one_step(self) -> torch.Tensor:
        """Do one step; return each head's mean loss [K]."""
        options, heads = self.options, self.heads
        seed = options.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout's
        device = heads.token_map.device
        batch = self.sampler.batch(self.step)
        draft = self.draft_index[batch.tokens]
        vocabulary = sample_vocabulary(
            len(heads.token_map), options.sampled_vocab, draft, generator
        )
        # [n, L + K] index of the true token among the sampled ones, or -1
        truth = torch.where(draft >= 0, vocabulary.position[draft.clamp(min=0)], -1).to(
            device
        )
        ids = vocabulary.ids.to(device)
        correction = vocabulary.correction.to(device)
        hidden = batch.hidden.to(device)
        runs, length = batch.valid.shape[1:]
        width = hidden.shape[-1]
        with torch.no_grad():
            scores = heads.base_logits(hidden.reshape(-1, width), ids) + correction
            # [n, L + K, S] the base model's distribution at each position
            soft = torch.softmax(scores, -1).to(heads.compute_dtype)
            soft = soft.view(runs, -1, len(ids))
        heads.train()
        logits = heads.logits(heads.states(hidden[:, :length].reshape(-1, width)), ids)
        losses = []
        for head in range(heads.spec.num_heads):
            ahead = slice(head + 1, head + 1 + length)
            valid = batch.valid[head].reshape(-1).float()
            losses.append(
                MixedCrossEntropy.apply(
                    logits[head],
                    correction,
                    soft[:, ahead].reshape(-1, len(ids)),
                    truth[:, ahead].reshape(-1),
                    options.hard_weight,
                    (valid / valid.sum().clamp(min=1)).to(device),
                )
            )
        loss = torch.stack(losses)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.head_weights.to(device)).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, options.clip)
        self.optimizer.step()
        if options.average:
            # Early on the average follows fast, so that it forgets the start.
            decay = min(options.average, (self.step + 1) / (self.step + 10))
            now = [p.detach() for p in self.parameters]
            torch._foreach_lerp_(self.averages, now, 1 - decay)
        return loss.detach().double().cpu()

    def _measure(self) -> None:
        """Add a point to the curve: mean loss since the last one, held-out top-1."""
        since = self.history[-1]["step"] if self.history else 0
        if self.options.average:
            self._swap_average()
        accuracy = top_1(rank_of_truth(self.heads, self.held_out))
        if self.options.average:
            self._swap_average()
        self.history.append(
            {
                "step": self.step,
                "loss": (self._loss_sum / (self.step - since)).tolist(),
                "accuracy": accuracy,
            }
        )
        self._loss_sum.zero_()

    @torch.no_grad()
    def _swap_average(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def _identify(self, corpus: Corpus) -> str:
        """A digest of what must not change between a run and its continuation."""
        digest = hashlib.sha256(repr(sorted(asdict(self.options).items())).encode())
        digest.update(repr(self.heads.spec).encode())
        for tensor in (corpus.tokens, self.held_out.tokens, self.heads.token_map.cpu()):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _save(self) -> None:
        state = {
            "fingerprint": self._fingerprint,
            "step": self.step,
            "heads": self.heads.state_dict(),
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self._loss_sum,
            "history": self.history,
        }
        with atomic_path(self.checkpoint) as temporary, temporary.open("wb") as stream:
            # To a path PyTorch would write without telling why it can't.
            torch.save(state, stream)

    def _restore(self) -> None:
        try:
            state = torch.load(self.checkpoint, weights_only=True)
            fingerprint = state["fingerprint"]
        except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"{self.checkpoint} is damaged ({error}): delete it to start over"
            ) from None
        if fingerprint != self._fingerprint:
            raise ConfigError(
                f"{self.checkpoint} is of a run with other options or other data: "
                "give the same ones to go on, or delete it to start over"
            )
        self.step = state["step"]
        self.heads.load_state_dict(state["heads"])
        self.averages = state["averages"]
        self.optimizer.load_state_dict(state["optimizer"])
        self._loss_sum = state["loss_sum"]
        self.history = state["history"]
