# SPDX-License-Identifier: Apache-2.0
"""The stages of a Medusa-2 run, from answers to a backbone with heads."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vllm_medusa.checkpoint import load_heads
from vllm_medusa.errors import ConfigError, QualityError
from vllm_medusa.files import remove_leftovers
from vllm_medusa.json_file import write_json
from vllm_medusa.locks import exclusive
from vllm_medusa.train.backbone import hidden_states, load_backbone
from vllm_medusa.train.curve import check_matplotlib
from vllm_medusa.train.fresh_heads import fresh_heads
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.measure import rank_of_truth, top_1
from vllm_medusa.train.medusa2.checks import (
    check_folders,
    check_generation_config,
    read_tokenizer,
)
from vllm_medusa.train.medusa2.data import read_data
from vllm_medusa.train.medusa2.export import export, saved_dtype
from vllm_medusa.train.medusa2.full import FullBackbone
from vllm_medusa.train.medusa2.held_out import Observer
from vllm_medusa.train.medusa2.initial_heads import heads_from
from vllm_medusa.train.medusa2.joint_model import JointModel
from vllm_medusa.train.medusa2.lora import LoraBackbone, check_peft, find_targets
from vllm_medusa.train.medusa2.options import Medusa2Options
from vllm_medusa.train.medusa2.output import REPORT_FILE, claimed
from vllm_medusa.train.medusa2.phase import Phase, heads_phase, joint_phase
from vllm_medusa.train.medusa2.quality import QualityReport
from vllm_medusa.train.medusa2.trainer import JointTrainer
from vllm_medusa.train.medusa2.tuned import (
    TunedBackbone,
    check_plain_lm_head,
    is_tied,
    untie,
)
from vllm_medusa.train.packing_check import check_packing
from vllm_medusa.train.pipeline import versions
from vllm_medusa.train.processes import Processes
from vllm_medusa.train.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train(
    options: Medusa2Options,
    progress: Progress,
    command: Sequence[str] = (),
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Run all stages; return what recipe.json holds, complete in the first process.

    Args:
        options: of the run.
        progress: shows it.
        command: for the recipe.
        processes: this one and the others, all of which call this; None: alone, on a
            GPU if there is one.

    Raises:
        ConfigError: bad options or input files, or a package is missing.
        CheckpointError: the model or the given heads can't be used.
        UnsupportedError: the model's logits are not what the losses assume, or its
            weights are quantised.
        QualityError: the backbone moved beyond its bounds; the work folder keeps the
            report and the last good state, a former output stays as it was.
        OutputError: there is no room to write, or another run is at work in the work
            or output folder.
    """
    check_matplotlib()
    if options.adapters.kind == "lora":
        check_peft()
    check_folders(options)
    if options.export_last_good and not _checkpoint(options, "joint").is_file():
        raise ConfigError(
            f"{_checkpoint(options, 'joint')} does not exist: no state within the "
            "bounds was saved"
        )
    saved_dtype(options)
    processes = processes or Processes.alone()
    with ExitStack() as stack:

        def prepare() -> None:
            stack.enter_context(exclusive(options.work, wait=False))
            remove_leftovers(options.work)
            stack.enter_context(claimed(options.output))

        processes.first(prepare)
        return _Run(options, progress, processes).run(list(command))


class _Run:
    """One run; its methods are the stages."""

    def __init__(
        self, options: Medusa2Options, progress: Progress, processes: Processes
    ) -> None:
        self.options = options
        self.progress = progress
        self.processes = processes
        self.dtype = options.compute.dtype
        self.history: list[dict[str, Any]] = []
        self.tokenizer, vocab_size = read_tokenizer(options.model)
        self.given_heads = None
        if options.heads_folder is not None:
            self.given_heads = load_heads(options.heads_folder)
        self.data = read_data(options, vocab_size)
        size = options.rows_per_step // options.compute.gradient_accumulation_steps
        self.observer = Observer(
            self.data.held_out, max(1, size), self.dtype, processes.device
        )

    def run(self, command: list[str]) -> dict[str, Any]:
        """Do all stages; return the recipe."""
        started = time.time()
        model = self._load()
        heads = self._initial_heads(model)
        self.heads_spec = heads.spec
        lm_head = model.get_output_embeddings().weight.detach()
        before = self.observer.look_at_original(partial(hidden_states, model), lm_head)
        self.report = QualityReport(self.options.bounds, before)
        joint = self._train(model, heads)
        recipe = self._recipe(command, round(time.time() - started))
        self.processes.first(
            lambda: export(
                joint,
                self.options,
                self.tokenizer,
                self.observer,
                self.report,
                self.history,
                recipe,
            )
        )
        return recipe

    def _load(self) -> PreTrainedModel:
        options = self.options
        # Weights that are trained are so in float32.
        full = options.adapters.kind == "full"
        dtype = torch.float32 if full else self.dtype
        model = load_backbone(options.model, dtype, None, self.processes.device)
        if options.adapters.untie:
            if not is_tied(model):
                raise ConfigError(
                    f"the LM head of {options.model!r} is not tied to its token "
                    "embedding: leave --untie out"
                )
            untie(model)
        check_plain_lm_head(model)
        check_packing(model)
        check_generation_config(model)
        if not full:
            find_targets(model, options.adapters)
        return model

    def _initial_heads(self, model: PreTrainedModel) -> TrainableHeads:
        options = self.options
        lm_head = model.get_output_embeddings().weight.detach().cpu()
        if self.given_heads is not None:
            dropout = options.fit.dropout
            heads = heads_from(self.given_heads, lm_head, self.dtype, dropout)
        else:
            tokens = self.data.training_tokens
            heads = fresh_heads(options.heads, lm_head, tokens, self.dtype, options.fit)
        return heads.to(self.processes.device)

    def _train(self, model: PreTrainedModel, heads: TrainableHeads) -> JointModel:
        options, fit, joint = self.options, self.options.fit, self.options.joint
        kind = options.adapters.kind
        if joint.schedule == "two-stage" and options.heads_folder is None:
            frozen = self._joint_model(TunedBackbone(model), heads)
            self._fit(frozen, heads_phase(joint, fit))
        torch.manual_seed(fit.seed)
        tuned: TunedBackbone
        if kind == "lora":
            tuned = LoraBackbone(model, options.adapters)
        else:
            needed = joint.base_loss == "kl" or fit.hard_weight < 1
            tuned = FullBackbone(model, self.dtype if needed else None)
        both = self._joint_model(tuned, heads)
        self._fit(both, joint_phase(joint, fit, kind))
        return both

    def _joint_model(
        self, backbone: TunedBackbone, heads: TrainableHeads
    ) -> JointModel:
        options = self.options
        model = JointModel(backbone, heads, options.fit, options.joint.base_loss)
        return model.to(self.processes.device)

    def _fit(self, model: JointModel, phase: Phase) -> None:
        options = self.options
        guarded = phase.base > 0
        trainer = JointTrainer(
            model,
            self.data.training,
            phase,
            options,
            _checkpoint(options, phase.name),
            partial(self._measure, guarded),
            self.processes,
        )
        if guarded:
            keys = ("step", "perplexity", "agreement")
            self.report.history = [
                {key: point[key] for key in keys} for point in trainer.history
            ]
        if not options.export_last_good:
            name = "heads and backbone" if guarded else "heads"
            self.progress.stage(name, trainer.num_steps)
            try:
                trainer.fit(lambda step, _: self.progress.advance_to(step))
            except QualityError as error:
                raise QualityError(f"{error}. {self._advice(trainer)}") from None
        first = self.history[-1]["step"] if self.history else 0
        self.history += [
            point | {"step": first + point["step"]} for point in trainer.history
        ]

    def _advice(self, trainer: JointTrainer) -> str:
        good = trainer.history[-1]["step"] if trainer.history else 0
        kept = f"The report is {self.options.work / REPORT_FILE}. "
        if good:
            kept += (
                f"The state after step {good} is within the bounds: --export-last-good "
                "writes it. "
            )
        milder = "lower --backbone-learning-rate or --heads-weight"
        if self.options.joint.base_loss != "kl":
            milder += " or take --base-loss kl"
        kept += f"Else {milder}, and delete {trainer.checkpoint}; "
        return f"{kept}or loosen the bounds"

    def _measure(self, guarded: bool, step: int, model: JointModel) -> dict[str, Any]:
        heads = model.heads
        with torch.no_grad():
            lm_head = model.backbone.lm_head()
            heads.base_rows.copy_(lm_head[heads.token_map])
        observed = self.observer.look(model.backbone.hidden, lm_head)
        point: dict[str, Any] = {
            "accuracy": top_1(rank_of_truth(heads, observed.corpus))
        }
        if guarded:
            now = self.observer.quality(observed)
            point |= {"perplexity": now.perplexity, "agreement": now.agreement}
            try:
                self.report.add(step, now)
            finally:
                write_json(self.options.work / REPORT_FILE, self.report.to_json())
        return point

    def _recipe(self, command: list[str], seconds: int) -> dict[str, Any]:
        options = self.options
        return {
            "command": command,
            "date": datetime.date.today().isoformat(),
            "stage": "medusa2",
            "base_model": options.base_name or options.model,
            "heads_before": options.heads_folder and str(options.heads_folder),
            "data": self.data.counts,
            "joint": asdict(options.joint),
            "adapters": asdict(options.adapters),
            "heads": asdict(self.heads_spec),
            "fit": asdict(options.fit),
            "compute": asdict(options.compute) | {"processes": self.processes.count},
            "steps": self.history[-1]["step"] if self.history else 0,
            "seconds": seconds,
            "versions": versions(),
        }


def _checkpoint(options: Medusa2Options, phase: str) -> Path:
    return options.work / f"{phase}.pt"
