# SPDX-License-Identifier: Apache-2.0
"""The loop over steps: on any number of processes, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.medusa2.joint_model import JointModel, LossWeights
from vllm_medusa.train.medusa2.options import Medusa2Options
from vllm_medusa.train.medusa2.phase import Phase
from vllm_medusa.train.packing import PackedBatch, PackedSampler
from vllm_medusa.train.processes import Processes
from vllm_medusa.train.rate import rate_share
from vllm_medusa.train.run_state import read_state, write_state
from vllm_medusa.train.sharding import delay_sync, share

Measure = Callable[[int, JointModel], dict[str, Any]]
"""What is measured after a step, for the curve; raises QualityError to stop."""


class JointTrainer:
    """Trains a `JointModel` through one phase.

    A step's batch follows from (seed, step), its dropout from these and the part of
    the batch. So a run that goes on from a checkpoint does what it would have done
    uninterrupted. The loss is the mean over all targets of the whole batch, in however
    many parts and processes.

    A checkpoint is written after each measurement and only if it passed: what the
    file holds is always good.

    Args:
        model: on the device of `processes`, changed in place; its trained weights are
            those that need gradients.
        answers: to train on, no longer than a row.
        phase: what is trained how.
        options: of the run.
        checkpoint: file of the running state; read if it is there.
        measure: called in the first process.
        processes: this process and the others.

    Raises:
        ConfigError: the checkpoint is of other options or other data, or damaged; or
            a batch can't be shared out evenly.
    """

    def __init__(
        self,
        model: JointModel,
        answers: Sequence[Answer],
        phase: Phase,
        options: Medusa2Options,
        checkpoint: Path,
        measure: Measure,
        processes: Processes,
    ) -> None:
        self.model = model
        self.phase = phase
        self.options = options
        self.checkpoint = checkpoint
        self.measure = measure
        self.processes = processes
        fit, rows = options.fit, options.rows_per_step
        self.parts = options.compute.gradient_accumulation_steps
        if rows % (self.parts * processes.count):
            raise ConfigError(
                f"a batch of {rows} rows can't be shared evenly by {processes.count} "
                f"processes in {self.parts} parts each: change batch_size"
            )
        self.sampler = PackedSampler(answers, fit.sequence_length, rows, fit.seed)
        self.num_steps = max(1, round(phase.epochs * self.sampler.steps_per_epoch))
        if options.joint.checkpointing and model.backbone.trainable():
            model.backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(
            self._groups(), betas=(0.9, 0.99), weight_decay=fit.weight_decay
        )
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._losses = torch.zeros(1 + model.heads.spec.num_heads, dtype=torch.float64)
        self._measured_at = 0
        self._fingerprint = self._identify(answers)
        state = read_state(checkpoint, self._fingerprint)
        if state is not None:
            self._restore(state)
        self._shared = share(model, processes, fsdp=False)

    def fit(self, on_step: Callable[[int, int], None] = lambda step, of: None) -> None:
        """Train to the end; `on_step(step, num_steps)` is called after each step.

        Raises:
            QualityError: the guard stopped the run.
        """
        while self.step < self.num_steps:
            self._losses += self._one_step()
            self.step += 1
            last = self.step == self.num_steps
            if self.step % self.options.fit.measure_every == 0 or last:
                self.processes.first(self._measure_and_save)
                self._losses.zero_()
                self._measured_at = self.step
            on_step(self.step, self.num_steps)

    def _groups(self) -> list[dict[str, Any]]:
        rates = [
            (list(self.model.heads.parameters()), self.phase.heads_rate),
            (list(self.model.backbone.trainable().values()), self.phase.backbone_rate),
        ]
        return [
            {"params": weights, "lr": rate, "peak": rate}
            for weights, rate in rates
            if weights
        ]

    def _one_step(self) -> torch.Tensor:
        """Do one step; return the mean loss of backbone and heads, [1 + K]."""
        fit, processes = self.options.fit, self.processes
        batch = self.sampler.batch(self.step)
        counts = self._targets(batch)
        weights = LossWeights(
            base=self.phase.base,
            heads=self.phase.heads_weight(self.step, self.num_steps),
            # Gradients are averaged over the processes, not added.
            per_target=(processes.count / counts.clamp(min=1)).to(processes.device),
        )
        share = rate_share(self.step, self.num_steps, fit.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        if not self.model.backbone.trainable():
            self.model.backbone.eval()
        losses = torch.zeros(len(counts), dtype=torch.float64)
        for part in range(self.parts):
            losses += self._part(batch, part, weights)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, fit.clip)
        self.optimizer.step()
        return processes.total(losses) / processes.count

    def _part(
        self, batch: PackedBatch, part: int, weights: LossWeights
    ) -> torch.Tensor:
        """Add the gradients of some rows; return their share of the losses."""
        options, processes = self.options, self.processes
        number = part * processes.count + processes.rank
        size = options.rows_per_step // (self.parts * processes.count)
        rows = batch.rows(slice(number * size, (number + 1) * size))
        seed = options.fit.seed * 1_000_003 + self.step
        torch.manual_seed((seed * 65_537 + number) % 2**63)  # dropout's
        mixed = options.compute.dtype == torch.bfloat16
        with delay_sync(self._shared, part == self.parts - 1):
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=mixed):
                loss, losses = self._shared(rows.to(processes.device), weights)
            loss.backward()
        return losses.double().cpu()

    def _targets(self, batch: PackedBatch) -> torch.Tensor:
        """Targets of backbone and heads in a batch, [1 + K] float32."""
        return torch.stack(
            [
                (batch.targets(ahead) >= 0).sum().float()
                for ahead in range(1, len(self._losses) + 1)
            ]
        )

    def _measure_and_save(self) -> None:
        """Add a point to the curve: mean loss since the last one, what is measured."""
        self.model.eval()
        mean = (self._losses / (self.step - self._measured_at)).tolist()
        point = {
            "step": self.step,
            "phase": self.phase.name,
            "base_loss": mean[0],
            "loss": mean[1:],
        }
        self.history.append(point | self.measure(self.step, self.model))
        state = {
            "step": self.step,
            "trained": {n: p.detach() for n, p in self._trained().items()},
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        write_state(self.checkpoint, self._fingerprint, state)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        self.step = self._measured_at = state["step"]
        for name, weight in self._trained().items():
            weight.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]

    def _identify(self, answers: Sequence[Answer]) -> str:
        """A digest of what must not change between a run and its continuation.

        Bounds may: they don't change the weights.
        """
        options, heads = self.options, self.model.heads
        told = [
            self.phase.name,
            options.model,
            asdict(options.fit),
            options.compute.dtype,
            heads.spec,
            options.joint.heads_epochs,
            self.phase.heads_rate,
        ]
        if self.phase.base:  # else other ones may go on from the heads
            joint = options.joint
            told += [asdict(joint), joint.heads_weight_or_default]
            told += [asdict(options.adapters), self.phase.backbone_rate]
        digest = hashlib.sha256(repr(told).encode())
        for answer in answers:
            ids = answer.prompt_token_ids, answer.answer_token_ids
            digest.update(repr(ids).encode())
        for tensor in (heads.token_map, *heads.parameters()):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
