# SPDX-License-Identifier: Apache-2.0
"""The training loop: resumable, and the same with or without an interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vllm_medusa.train.batches import Batches
from vllm_medusa.train.compute_options import ComputeOptions
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.heads_loss import HeadsLoss
from vllm_medusa.train.measure import rank_of_truth, top_1
from vllm_medusa.train.processes import Processes
from vllm_medusa.train.rate import rate_share
from vllm_medusa.train.run_state import read_state, write_state
from vllm_medusa.train.sharding import sharded_as, share, whole, whole_tensors
from vllm_medusa.train.step import TrainingStep
from vllm_medusa.train.store import Corpus


class Trainer:
    """Fits heads.

    Everything random in a step is drawn from (seed, step), so a run that goes on
    from a checkpoint does what it would have done uninterrupted. Another number of
    processes or parts may go on too: it changes the rounding only.

    Args:
        heads: fresh heads on the device of `processes`; changed in place.
        batches: what to train on.
        tokens: [num_tokens] int64, the answer tokens of `batches`.
        held_out: answers whose accuracy the curve shows.
        options: how.
        checkpoint: file of the running state; read if it is there.
        compute: how the work is done.
        processes: this process and the others.

    Raises:
        ConfigError: the checkpoint is of other options, other data or another base
            model, or damaged; or a batch can't be shared out evenly.
    """

    def __init__(
        self,
        heads: TrainableHeads,
        batches: Batches,
        tokens: torch.Tensor,
        held_out: Corpus,
        options: FitOptions,
        checkpoint: Path,
        compute: ComputeOptions = ComputeOptions(),  # noqa: B008 (frozen)
        processes: Processes = Processes(),  # noqa: B008 (frozen)
    ) -> None:
        self.heads = heads
        self.held_out = held_out
        self.options = options
        self.checkpoint = checkpoint
        self.processes = processes
        self.num_steps = max(1, round(options.epochs * batches.steps_per_epoch))
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._loss_sum = torch.zeros(heads.spec.num_heads, dtype=torch.float64)
        self._fingerprint = self._identify(tokens, compute)
        state = read_state(checkpoint, self._fingerprint)
        if state is not None:
            heads.load_state_dict(state["heads"])
        loss = HeadsLoss(heads, options.hard_weight)
        self._shared = share(loss, processes, fsdp=compute.fsdp)
        self.training_step = TrainingStep(
            self._shared,
            heads,
            batches,
            options,
            processes,
            compute.gradient_accumulation_steps,
        )
        self.parameters = list(self._shared.parameters())
        self.averages = [p.detach().clone() for p in self.parameters if options.average]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=options.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=options.weight_decay,
        )
        if state is not None:
            self._restore(state)

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

    def whole_heads(self) -> AbstractContextManager[None]:
        """Inside, the heads have plain tensors; to be entered by all processes."""
        return whole(self._shared)

    def learning_rate(self, step: int) -> float:
        """The rate of a step (see `rate_share`)."""
        share = rate_share(step, self.num_steps, self.options.warmup)
        return self.options.learning_rate * share

    def _one_step(self) -> torch.Tensor:
        """Do one step; return each head's mean loss [K]."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.training_step.run(self.step)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        self.optimizer.step()
        average = self.options.average
        if average:
            # Early on the average follows fast, so that it forgets the start.
            decay = min(average, (self.step + 1) / (self.step + 10))
            now = [p.detach() for p in self.parameters]
            torch._foreach_lerp_(self.averages, now, 1 - decay)
        return losses

    def _measure(self) -> None:
        """Add a point to the curve: mean loss since the last one, held-out top-1."""
        since = self.history[-1]["step"] if self.history else 0
        with self._averaged(), self.whole_heads():
            accuracy = top_1(rank_of_truth(self.heads, self.held_out))
        self.history.append(
            {
                "step": self.step,
                "loss": (self._loss_sum / (self.step - since)).tolist(),
                "accuracy": accuracy,
            }
        )
        self._loss_sum.zero_()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the heads hold the averaged weights if the options ask for them."""
        if not self.options.average:
            yield
            return
        self._swap_average()
        yield
        self._swap_average()

    @torch.no_grad()
    def _swap_average(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def _identify(self, tokens: torch.Tensor, compute: ComputeOptions) -> str:
        """A digest of what must not change between a run and its continuation."""
        digest = hashlib.sha256(repr(sorted(asdict(self.options).items())).encode())
        digest.update(repr(self.heads.spec).encode())
        states = compute.hidden_states, compute.quantization, compute.mixed_precision
        digest.update(repr(states).encode())
        for tensor in (
            tokens,
            self.held_out.tokens,
            self.heads.token_map,
            # What tells one base model from another.
            self.heads.base_rows,
        ):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _save(self) -> None:
        """Write the running state; all processes make it whole, the first writes."""
        state = {
            "step": self.step,
            "heads": whole_tensors(self.heads.state_dict()),
            "averages": whole_tensors(self.averages),
            "optimizer": whole_tensors(self.optimizer.state_dict()),
            "loss_sum": self._loss_sum,
            "history": self.history,
        }
        self.processes.first(
            lambda: write_state(self.checkpoint, self._fingerprint, state)
        )

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on from what `_save` wrote; the heads have their weights already."""
        self.step = state["step"]
        self.history = state["history"]
        self._loss_sum = state["loss_sum"]
        optimizer = state["optimizer"]
        for index, parameter in enumerate(self.parameters):
            if self.averages:
                average = sharded_as(state["averages"][index], parameter)
                self.averages[index] = average
            moments = optimizer["state"][index]
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = sharded_as(moments[name], parameter)
        self.optimizer.load_state_dict(optimizer)
