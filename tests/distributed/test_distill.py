# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa distill --ray`: Ray Data's engines give the files of a local one."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from tests.engine.support.distill import build_talker, command_for, distill

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="requests do not depend on the runner"),
    pytest.mark.slow,
]


def test_ray_gives_the_same_files(
    tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("talker", "sources"):
        (tmp_path / name).mkdir()
    talker = build_talker(tmp_path / "talker")
    command = command_for(talker, tmp_path / "sources")
    expected = distill(command, tmp_path / "here")
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    # A token would be written to the home folder.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = distill(command, tmp_path / "there", "--ray", "local")
    assert found == expected
    assert not ray.is_initialized()
