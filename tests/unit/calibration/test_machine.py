# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
import time

from vllm_medusa.calibration import machine
from vllm_medusa.calibration.machine import (
    Load,
    describe_machine,
    engine_environment,
    others_share,
    usable_cores,
)


def test_the_description_goes_into_json() -> None:
    facts = json.loads(json.dumps(describe_machine()))
    assert facts["cores"] == len(usable_cores()) >= 1
    assert facts["memory_gib"] > 0
    assert facts["versions"]["python"].startswith("3.")


def test_all_usable_cores_are_bound_unless_told_otherwise() -> None:
    cores = ",".join(map(str, usable_cores()))
    name = "VLLM_CPU_OMP_THREADS_BIND"
    assert engine_environment(environment={})[name] == cores
    assert engine_environment(environment={name: "nobind"})[name] == "nobind"
    assert engine_environment("0", {name: "nobind"})[name] == "0"


def test_an_empty_cache_size_is_replaced() -> None:
    name = "VLLM_CPU_KVCACHE_SPACE"
    assert engine_environment(environment={name: ""})[name] == "1"
    assert engine_environment(environment={name: "4"})[name] == "4"


def test_openmp_is_preloaded_once_and_before_others(tmp_path, monkeypatch) -> None:
    library = tmp_path / "libiomp5.so"
    library.touch()
    monkeypatch.setattr(machine, "openmp_library", lambda: library)
    first = engine_environment(environment={"LD_PRELOAD": "other.so"})["LD_PRELOAD"]
    assert first == f"{library}:other.so"
    assert engine_environment(environment={"LD_PRELOAD": first})["LD_PRELOAD"] == first
    assert engine_environment(environment={})["LD_PRELOAD"] == str(library)


def test_own_work_counts_as_own_and_as_the_machines() -> None:
    before = Load.now()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    used = Load.now().since(before)
    assert used["own_cpu_seconds"] >= 0.25
    assert used["machine_cpu_seconds"] >= 0.2
    assert used["wall_seconds"] >= 0.3


def test_work_of_another_group_is_others() -> None:
    before = Load.now()
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    subprocess.run([sys.executable, "-c", burn], check=True, start_new_session=True)
    used = Load.now().since(before)
    assert used["machine_cpu_seconds"] - used["own_cpu_seconds"] >= 0.3


def test_others_share_is_in_cores() -> None:
    figures = {"machine_cpu_seconds": 9.0, "own_cpu_seconds": 4.0, "wall_seconds": 10.0}
    assert others_share(figures) == 0.5
    figures["own_cpu_seconds"] = 9.1
    assert others_share(figures) == 0.0
