# SPDX-License-Identifier: Apache-2.0
"""Finding the base model of a plan: a built-in shape, a folder, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_medusa.checkpoint.locate import read_object
from vllm_medusa.checkpoint.naming import is_heads_tensor
from vllm_medusa.checkpoint.tensor_files import SafetensorsFile
from vllm_medusa.errors import CheckpointError
from vllm_medusa.planning.base_model import BaseModel, Shapes, base_model
from vllm_medusa.reading import local_path

_LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096}
_LLAMA_3 = {"vocab_size": 128256, "max_position_embeddings": 131072}


def _shape(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **other: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        **other,
    }


BUILT_IN = {
    "vicuna-7b": _shape(4096, 11008, 32, 32, 32, **_LLAMA_2),
    "vicuna-13b": _shape(5120, 13824, 40, 40, 40, **_LLAMA_2),
    "vicuna-33b": _shape(
        6656, 17920, 60, 52, 52, vocab_size=32000, max_position_embeddings=2048
    ),
    "llama-2-7b": _shape(4096, 11008, 32, 32, 32, **_LLAMA_2),
    "llama-2-13b": _shape(5120, 13824, 40, 40, 40, **_LLAMA_2),
    "llama-2-70b": _shape(8192, 28672, 80, 64, 8, **_LLAMA_2),
    "llama-3.1-8b": _shape(4096, 14336, 32, 32, 8, **_LLAMA_3),
    "llama-3.1-70b": _shape(8192, 28672, 80, 64, 8, **_LLAMA_3),
    "mistral-7b": _shape(
        4096, 14336, 32, 32, 8, vocab_size=32000, max_position_embeddings=32768
    ),
}
"""Published configs of models without files at hand, by the name that `plan` takes."""


def find_base(name: str, revision: str | None = None) -> BaseModel:
    """The base model called `name`, by its config and its files' headers.

    Args:
        name: "default" (the default model), a name of `BUILT_IN`, a folder, or a
            Hugging Face id, of which only config.json and the headers of the
            safetensors files are fetched.
        revision: branch, tag or commit of a Hugging Face repository.

    Raises:
        CheckpointError: there is no such model, or its files are damaged.
        UnsupportedError: an architecture that a plan doesn't cover.
    """
    if name.lower() in BUILT_IN:
        return base_model(name, _Config(BUILT_IN[name.lower()]), "built-in shape", None)
    if name == "default":
        from vllm_medusa.default_model import model_path

        folder, shapes = Path(model_path()), None
    elif local_path(name).is_dir():
        folder, shapes = local_path(name), None
    else:
        folder, shapes = _fetch(name, revision)
    shapes = shapes or _read_shapes(folder)
    source = "config.json" if shapes is None else "headers of the safetensors files"
    return base_model(name, _read_config(folder), source, shapes)


class _Config:
    """A built-in shape where a transformers config is expected."""

    def __init__(self, values: dict[str, Any]) -> None:
        vars(self).update(values)


def _read_config(folder: Path) -> Any:
    """The config with the defaults of its class; no code of the folder runs."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json: give a model's folder")
    # Checks size and form before anything else reads it.
    read_object(folder / "config.json", "config")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each config class checks in its own way
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"{folder / 'config.json'} is no config that this transformers knows: "
            f"{reason}"
        ) from error


def _read_shapes(folder: Path) -> Shapes | None:
    """Shapes in the headers of the folder's safetensors files; None without any."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_object(index, "index").get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(file, str) and Path(file).name == file
            for file in weight_map.values()
        ):
            raise CheckpointError(f"{index} has no weight_map of tensors to files")
        files = sorted(set(weight_map.values()))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        return None
    if not all((folder / file).is_file() for file in files):
        # A cache with some of the shards: config.json has to do.
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, info in SafetensorsFile(folder / file).infos.items():
            shapes[name] = info.shape
    return _own_names(shapes)


def _own_names(shapes: Shapes) -> Shapes:
    """The base model's tensors: no heads beside it, no tables that vLLM computes."""
    return {
        name.removeprefix("model."): tuple(shape)
        for name, shape in shapes.items()
        if not is_heads_tensor(name) and not name.endswith("rotary_emb.inv_freq")
    }


def _fetch(repository: str, revision: str | None) -> tuple[Path, Shapes | None]:
    """Folder of config.json in the Hugging Face cache, and shapes from the hub."""
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    known = ", ".join(BUILT_IN)
    try:
        config = hf_hub_download(repository, "config.json", revision=revision)
    except Exception as error:  # each HTTP library has errors of its own
        raise CheckpointError(
            f"base model {repository[:100]!r} is no folder, and no Hugging Face model "
            f"whose config.json can be read ({type(error).__name__}). Built-in shapes: "
            f"default, {known}"
        ) from error
    folder = Path(config).parent
    if (shapes := _read_shapes(folder)) is not None:
        return folder, shapes
    try:
        metadata = get_safetensors_metadata(repository, revision=revision)
    except Exception:  # no safetensors files, or no connection: config.json has to do
        return folder, None
    return folder, _own_names(
        {
            name: tuple(info.shape)
            for file in metadata.files_metadata.values()
            for name, info in file.tensors.items()
        }
    )
