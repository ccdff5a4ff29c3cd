# SPDX-License-Identifier: Apache-2.0
"""JSON files beside the weights that are too much, too deep or something else."""

from __future__ import annotations

from tests.fuzz.attacks import Scene, attack
from tests.fuzz.mutate_json import mutate_json


@attack(refused=False)
def mutated_json(scene: Scene) -> None:
    files = scene.write_form()
    names = [name for name in files if name.endswith(".json")]
    name = scene.random.choice(names)
    (scene.folder / name).write_bytes(mutate_json(files[name], scene.random))


@attack(refused=True)
def text_of_a_hundred_megabytes(scene: Scene) -> None:
    files = scene.write_form()
    name = scene.random.choice([name for name in files if name.endswith(".json")])
    with (scene.folder / name).open("wb") as stream:
        stream.write(b'{"x": "')
        stream.truncate(100 << 20)  # zeros that take no room on the disk


@attack(refused=True)
def lists_by_the_million(scene: Scene) -> None:
    files = scene.write_form("full model, sharded")
    name = scene.random.choice([name for name in files if name.endswith("json")])
    (scene.folder / name).write_bytes(b'{"weight_map": [' + b"[]," * 1_300_000 + b"1]}")


@attack(refused=False)
def code_of_the_checkpoints_own(scene: Scene) -> None:
    """What transformers would run if it were told to trust it."""
    scene.write_form()
    payload = f"open({str(scene.canary)!r}, 'w')\n"
    for name in ("modeling.py", "configuration.py", "__init__.py", "sitecustomize.py"):
        (scene.folder / name).write_text(payload)
    config = scene.folder / "config.json"
    text = config.read_text().rstrip().removesuffix("}")
    auto_map = '"AutoConfig": "configuration.C", "AutoModel": "modeling.M"'
    config.write_text(f'{text}, "auto_map": {{{auto_map}}}}}')
    (scene.folder / "tokenizer_config.json").write_text(
        f'{{"auto_map": {{{auto_map}}}}}'
    )
    (scene.folder / "tokenizer.json").write_text("not read")
