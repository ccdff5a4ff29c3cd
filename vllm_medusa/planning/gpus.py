# SPDX-License-Identifier: Apache-2.0
"""GPUs by their published figures, and machines that a file describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vllm_medusa.errors import ConfigError
from vllm_medusa.json_file import read_json

GIB = 1 << 30
_LARGE, _LARGEST = 70 * GIB, 160 * GIB


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of one accelerator.

    Attributes:
        name: as the user writes it.
        memory_bytes: as CUDA reports it, a little less than the nominal size; None if
            the plan is for no particular size.
        bandwidth: of the memory, bytes/s; None: no step cost is worked out.
        flops: dense FLOP/s by "bfloat16" (float16 too), "fp8" and "float32".
        link: bytes/s to the other ranks, one direction; None if unknown.
        processors: streaming multiprocessors.
    """

    name: str
    memory_bytes: int | None = None
    bandwidth: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    link: float | None = None
    processors: int = 1

    @property
    def default_max_num_seqs(self) -> int:
        """vLLM's default for `vllm serve` (`EngineArgs.get_batch_defaults`)."""
        if self.memory_bytes is None:
            return 128
        return 1024 if self._is_large else 256

    @property
    def default_max_num_batched_tokens(self) -> int:
        """vLLM's default for `vllm serve` (`EngineArgs.get_batch_defaults`)."""
        if self.memory_bytes is not None and self.memory_bytes >= _LARGEST:
            return 16384
        return 8192 if self._is_large else 2048

    @property
    def _is_large(self) -> bool:
        memory = self.memory_bytes or 0
        return memory >= _LARGEST or (
            memory >= _LARGE and not self.name.startswith("A100")
        )


def _gpu(
    name: str,
    memory_gib: float,
    gb_per_second: float,
    tflops: tuple[float, float | None, float],
    link_gb_per_second: float,
    processors: int,
) -> Device:
    bfloat16, fp8, float32 = tflops
    flops = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    if fp8 is not None:
        flops["fp8"] = fp8 * 1e12
    return Device(
        name=name,
        memory_bytes=int(memory_gib * GIB),
        bandwidth=gb_per_second * 1e9,
        flops=flops,
        link=link_gb_per_second * 1e9,
        processors=processors,
    )


# NVIDIA's data sheets: memory bandwidth (GB/s); TFLOP/s of the tensor cores in
# bfloat16 and fp8, without sparsity, accumulating in float32, and of the CUDA cores in
# float32, which is what vLLM's float32 products run on; NVLink's or PCIe's GB/s in one
# direction, half of the total that the sheets give. Memory in GiB as CUDA reports it
# (torch.cuda.get_device_properties), which differs by some hundred MiB between drivers.
_GPUS = (
    _gpu("B200", 178.3, 7700, (2250, 4500, 75), 900, 148),
    _gpu("H200", 139.8, 4800, (989, 1979, 67), 450, 132),
    _gpu("H100", 79.1, 3350, (989, 1979, 67), 450, 132),
    _gpu("H100-NVL", 93.0, 3900, (835, 1671, 60), 300, 132),
    _gpu("H100-PCIe", 79.1, 2000, (756, 1513, 51), 64, 114),
    _gpu("A100-80GB", 79.1, 2039, (312, None, 19.5), 300, 108),
    _gpu("A100-80GB-PCIe", 79.1, 1935, (312, None, 19.5), 32, 108),
    _gpu("A100-40GB", 39.4, 1555, (312, None, 19.5), 300, 108),
    _gpu("L40S", 44.4, 864, (362, 733, 91.6), 32, 142),
    _gpu("L4", 22.0, 300, (121, 242, 30.3), 32, 58),
    _gpu("A10", 22.1, 600, (125, None, 31.2), 32, 72),
    _gpu("RTX-A6000", 47.4, 768, (155, None, 38.7), 32, 84),
    _gpu("RTX-3090", 23.6, 936, (71, None, 35.6), 32, 82),
    _gpu("RTX-4090", 23.6, 1008, (165, 330, 82.6), 32, 128),
    _gpu("RTX-5090", 31.3, 1792, (209, 419, 104.8), 64, 170),
)
_ALIASES = {"h100-sxm": "h100", "h200-sxm": "h200", "a100": "a100-80gb"}
_CPU = "cpu"

DEVICE_NAMES = (*(gpu.name for gpu in _GPUS), _CPU)
"""What `--gpu` takes."""


def find_device(name: str) -> Device:
    """The device called `name`, in any case, with spaces or hyphens.

    "cpu" has no figures: memory and speed of processors differ too much.

    Raises:
        ConfigError: an unknown name; lists those that are known.
    """
    wanted = name.strip().lower().replace(" ", "-").replace("_", "-")
    wanted = _ALIASES.get(wanted, wanted)
    if wanted == _CPU:
        return Device(_CPU)
    for gpu in _GPUS:
        if gpu.name.lower() == wanted:
            return gpu
    close = get_close_matches(wanted, [known.lower() for known in DEVICE_NAMES], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ConfigError(
        f"unknown GPU {name[:60]!r}{hint}: choose one of {', '.join(DEVICE_NAMES)}, or "
        "describe yours with --machine FILE"
    )


_MACHINE_KEYS = {
    "name": "its name",
    "memory_gib": "memory in GiB",
    "bandwidth_gb_per_second": "memory bandwidth",
    "tflops": 'an object of "bfloat16", "fp8" and "float32"',
    "link_gb_per_second": "bandwidth to the other ranks, one direction",
    "processors": "streaming multiprocessors",
}


def read_machine(path: str | Path) -> Device:
    """A device from a JSON file with the keys `_MACHINE_KEYS`, all but the first two
    optional; figures that are missing are not guessed.

    Raises:
        ConfigError: the file can't be read, or a value is impossible.
    """
    data = read_json(path, "machine", ConfigError)
    if not isinstance(data, dict):
        raise ConfigError(f"machine file {path} holds no JSON object")
    unknown = sorted(set(data) - set(_MACHINE_KEYS))
    if unknown:
        known = ", ".join(f"{key} ({what})" for key, what in _MACHINE_KEYS.items())
        raise ConfigError(
            f"machine file {path} has the unknown key {unknown[0]!r}: {known}"
        )
    name = data.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f'machine file {path} lacks "name", the name of the machine')
    tflops = data.get("tflops", {})
    if not isinstance(tflops, dict) or set(tflops) - {"bfloat16", "fp8", "float32"}:
        raise ConfigError(
            f"machine file {path}: tflops must be {_MACHINE_KEYS['tflops']}"
        )

    def number(
        key: str, scale: float, source: Mapping[str, Any] = data
    ) -> float | None:
        value = source.get(key)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1e9:
            raise ConfigError(
                f"machine file {path}: {key} is {str(value)[:40]!r}, a positive number "
                "is expected"
            )
        return float(value) * scale

    memory = number("memory_gib", GIB)
    if memory is None:
        raise ConfigError(f'machine file {path} lacks "memory_gib", the memory in GiB')
    flops = {key: number(key, 1e12, tflops) for key in tflops}
    return Device(
        name=name,
        memory_bytes=int(memory),
        bandwidth=number("bandwidth_gb_per_second", 1e9),
        flops={key: value for key, value in flops.items() if value is not None},
        link=number("link_gb_per_second", 1e9),
        processors=int(number("processors", 1) or 1),
    )
