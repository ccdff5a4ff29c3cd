# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa convert`: write any heads checkpoint in the canonical form or in that
of the reference implementation."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.files import writing
from vllm_medusa.locks import exclusive
from vllm_medusa.reading import local_path
from vllm_medusa.side_files import ACCURACIES_FILE, SIDE_FILES
from vllm_medusa.wording import show

if TYPE_CHECKING:
    from vllm_medusa.checkpoint import HeadsCheckpoint

NAME = "convert"
HELP = "write heads of any known format as one folder, ours or the reference's"

CANONICAL = "canonical"
FORMS = (CANONICAL, "v0.1", "v1")
"""What `--to` takes: our form, and releases of the reference (keys of
`vllm_medusa.checkpoint.export.REFERENCE_FILES`)."""

_OWN_FILES = {
    "config.json",
    "model.safetensors",
    "medusa_lm_head.pt",
    "medusa_lm_head.safetensors",
    *SIDE_FILES,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help='folder, tensor file, Hugging Face id, or "default"',
    )
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument(
        "--to",
        choices=FORMS,
        default=CANONICAL,
        help="form to write: ours, or the reference's v0.1 (a torch file) or v1 "
        "(safetensors) (default: %(default)s)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on Hugging Face")
    parser.add_argument(
        "--num-heads", type=int, metavar="N", help="keep only the first N heads"
    )
    parser.add_argument(
        "--draft-vocab",
        type=int,
        metavar="N",
        help="keep only the first N tokens of the token_map",
    )
    parser.add_argument("--base-model", help="name of the base model to note down")
    parser.add_argument(
        "--force", action="store_true", help="replace heads that DST already holds"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    target = convert(
        args.source,
        args.target,
        form=args.to,
        revision=args.revision,
        num_heads=args.num_heads,
        draft_vocab=args.draft_vocab,
        base_model=args.base_model,
        force=args.force,
    )
    print(f"wrote {target}")
    return 0


def convert(
    source: str | Path,
    target: str | Path,
    *,
    form: str = CANONICAL,
    revision: str | None = None,
    num_heads: int | None = None,
    draft_vocab: int | None = None,
    base_model: str | None = None,
    force: bool = False,
) -> Path:
    """Write the heads `source` to the folder `target`, whole or not at all.

    Args:
        source: see `vllm_medusa.checkpoint.resolve_heads`.
        target: folder to make.
        form: one of `FORMS`.
        revision: of a Hugging Face repository.
        num_heads: keep only the first heads; a tree and a calibration beside them,
            made for more heads, stay behind.
        draft_vocab: keep only the first tokens of the token_map.
        base_model: name to note down; that of the source's config by default.
        force: replace a folder of heads that is already there.

    Raises:
        CheckpointError: the source is unsound; the target exists and `force` is
            not given, or it holds something other than heads.
        ConfigError: `num_heads` or `draft_vocab` is more than there is, or the
            reference would not know the base model.
        UnsupportedError: the reference has no such heads; says why.
        OutputError: there is no room, or no permission to write.
    """
    from vllm_medusa.checkpoint import load_heads, save_heads
    from vllm_medusa.checkpoint.export import save_reference

    if form not in FORMS:
        raise ConfigError(f"unknown form {show(form)}: give {', '.join(FORMS)}")
    target = local_path(target)
    _check_target(target, force)
    checkpoint = load_heads(
        source, revision, num_heads=num_heads, draft_vocab=draft_vocab
    )
    with (
        writing(target),
        exclusive(target.parent, wait=True),
        tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name}."
        ) as temporary,
    ):
        # Another process may have made it meanwhile.
        _check_target(target, force)
        folder = Path(temporary, "new")
        base_model = base_model or checkpoint.base_model
        if form == CANONICAL:
            save_heads(
                folder,
                checkpoint.spec,
                checkpoint.tensors,
                base_model=base_model,
                extra_config=_further_keys(checkpoint),
            )
        else:
            save_reference(
                folder,
                checkpoint.spec,
                checkpoint.tensors,
                release=form,
                base_model=base_model,
            )
        # A tree and a calibration only fit as many heads as they were made for.
        for name in SIDE_FILES if num_heads is None else (ACCURACIES_FILE,):
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, folder / name)
        _replace_folder(target, folder, Path(temporary, "old"))
    return target


def _further_keys(checkpoint: HeadsCheckpoint) -> dict[str, Any]:
    """What a canonical config says beyond the heads, such as a training recipe."""
    from vllm_medusa.checkpoint.save import DESCRIBING_KEYS

    if checkpoint.format != "canonical":
        return {}
    return {k: v for k, v in checkpoint.config.items() if k not in DESCRIBING_KEYS}


def _replace_folder(target: Path, new: Path, aside: Path) -> None:
    """Put `new` in the place of `target`; a folder cannot be replaced in one step."""
    existed = target.exists()
    if existed:
        os.replace(target, aside)
    try:
        os.replace(new, target)
    except OSError:
        if existed:
            os.replace(aside, target)
        raise


def _check_target(target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file; give the name of a folder to make")
    others = sorted({entry.name for entry in target.iterdir()} - _OWN_FILES)
    if others:
        raise CheckpointError(
            f"{target} holds more than converted heads ({', '.join(others[:4])}); "
            "give another folder"
        )
    if not force:
        raise CheckpointError(f"{target} exists; give --force to replace it")
