# SPDX-License-Identifier: Apache-2.0
"""The output folder: a merged backbone, and heads for it.

OUTPUT/backbone is a model as transformers saves it, OUTPUT/heads a checkpoint in the
canonical form, OUTPUT/quality.json the guard's report. They replace a former output
only when all are written and within the bounds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vllm_medusa.files import writing
from vllm_medusa.json_file import write_json
from vllm_medusa.train.backbone import hidden_states, load_backbone
from vllm_medusa.train.medusa2.checks import read_config
from vllm_medusa.train.medusa2.held_out import Observer
from vllm_medusa.train.medusa2.joint_model import JointModel
from vllm_medusa.train.medusa2.options import Medusa2Options
from vllm_medusa.train.medusa2.output import BACKBONE, HEADS, REPORT_FILE, new_output
from vllm_medusa.train.medusa2.quality import QualityReport
from vllm_medusa.train.medusa2.tuned import TunedBackbone, untie
from vllm_medusa.train.pipeline import measure_all
from vllm_medusa.train.publish import publish
from vllm_medusa.tree import optimal

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export(
    model: JointModel,
    options: Medusa2Options,
    tokenizer: Any,
    observer: Observer,
    report: QualityReport,
    history: list[dict[str, Any]],
    recipe: dict[str, Any],
) -> None:
    """Merge, write, read again, measure what was written, and put it in place.

    Args:
        model: trained; on the CPU afterwards.
        options: of the run.
        tokenizer: written beside the backbone.
        observer: of the held-out answers.
        report: gets the merged backbone's quality.
        history: points of the curve.
        recipe: gets "quality" and "measured".

    Raises:
        QualityError: the merged backbone is out of bounds; nothing was replaced.
        OutputError: `options.output` can't be written, or another run is at work there.
    """
    heads = model.heads
    dtype = saved_dtype(options)
    merged = merge(model.backbone, options)
    model.backbone.to("cpu")
    with new_output(options.output) as new:
        write_backbone(merged, tokenizer, new / BACKBONE)
        del merged
        written = load_backbone(str(new / BACKBONE), dtype, None, observer.device)
        lm_head = written.get_output_embeddings().weight.detach()
        observed = observer.look(partial(hidden_states, written), lm_head, dtype)
        try:
            report.finish(observer.quality(observed))
        finally:
            write_json(options.work / REPORT_FILE, report.to_json())
        heads.load_tensors(heads.tensors())  # rounded as they are written
        heads.base_rows.copy_(lm_head[heads.token_map])
        (measured,) = measure_all(heads, observed.corpus)
        shipped = measured["accuracy_before_loops"]
        recipe |= {"quality": report.to_json(), "measured": {"held_out": measured}}
        publish(
            new / HEADS,
            heads,
            history,
            base_name=f"../{BACKBONE}",
            accuracies={
                "accuracy": shipped,
                "num_positions": measured["positions_before_loops"],
                "source": f"answers to {options.held_out:.1%} of the prompts, held out "
                "from training; up to where they begin to loop",
            },
            tree=optimal(shipped, options.tree_nodes),
            recipe=recipe,
        )
        write_json(new / REPORT_FILE, report.to_json())


def saved_dtype(options: Medusa2Options) -> torch.dtype:
    """The dtype the merged backbone is written in.

    Raises:
        CheckpointError: the model's config can't be read.
        UnsupportedError: the model is quantised.
    """
    if options.saved_dtype != "auto":
        dtype: torch.dtype = getattr(torch, options.saved_dtype)
        return dtype
    return read_config(options.model).dtype or torch.float32


def merge(tuned: TunedBackbone, options: Medusa2Options) -> PreTrainedModel:
    """The original model with the trained weights, on the CPU, rounded once."""
    model = load_backbone(options.model, saved_dtype(options), None, "cpu")
    if options.adapters.untie:
        untie(model)
    tuned.merge_into(model)
    return model


def write_backbone(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write safetensors, config, generation config, tokenizer and chat template.

    Raises:
        OutputError: there is no room, or no permission to write.
    """
    with writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
