# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from tests.unit.train import toy
from vllm_medusa.errors import MedusaError
from vllm_medusa.json_file import write_json
from vllm_medusa.train.base import make_spec
from vllm_medusa.train.curve import draw_curve
from vllm_medusa.train.options import HeadsOptions, TrainOptions
from vllm_medusa.train.pipeline import mean_table, measure_all


def options(folder: Path, **changes: object) -> TrainOptions:
    values: dict[str, object] = {
        "model": "toy",
        "output": folder / "heads",
        "work": folder / "work",
        "held_out": 0.3,
    }
    return TrainOptions(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeadsOptions(num_heads=65), "num_heads is 1 to 64"),
        (lambda: HeadsOptions(num_heads=0), "num_heads is 1 to 64"),
        (lambda: make_spec(HeadsOptions(), toy.lm_head()), "only 40 tokens"),
        (
            lambda: make_spec(
                HeadsOptions(draft_vocab=20, projection="low_rank", rank=17),
                toy.lm_head(),
            ),
            "rank 17",
        ),
        (lambda: options(Path("x"), held_out=0), "held_out"),
        (lambda: options(Path("x"), tree_nodes=0), "tree_nodes"),
    ],
)
def test_impossible_options_are_refused(make, message: str) -> None:
    with pytest.raises(MedusaError, match=message):
        make()


def test_measures_of_perfect_heads() -> None:
    # each answer repeats one token, which is what fresh heads guess
    tokens = torch.arange(12, 20).repeat_interleave(6)
    corpus = toy.Corpus(
        tokens, toy.lm_head()[tokens].bfloat16(), torch.arange(8).repeat_interleave(6)
    )
    (report,) = measure_all(toy.heads(), corpus, None)
    assert report["positions"] == report["positions_before_loops"] == 48
    assert [row[0] for row in report["accuracy"]] == [1.0, 1.0]
    assert report["tokens_per_step"]["chain:1"] == 2
    assert report["tokens_per_step"]["chain:2"] == 3
    assert report["tokens_per_step"]["optimal:8"] == 3


def test_mean_table() -> None:
    assert mean_table([[[0.5, 0.1]], [[0.3, 0.3]]]) == [[0.4, 0.2]]


def test_curve_and_json_are_written(tmp_path: Path) -> None:
    history = [
        {"step": step, "loss": [2.0 / step, 3.0 / step], "accuracy": [0.1, 0.05]}
        for step in (10, 20)
    ]
    draw_curve(history, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n")
    data = {"accuracy": [[i / 7 for i in range(10)]] * 3, "text": "ü", "none": None}
    write_json(tmp_path / "data.json", data)
    text = (tmp_path / "data.json").read_text()
    assert json.loads(text) == data
    assert len(text.splitlines()) == 9  # a line for each head
