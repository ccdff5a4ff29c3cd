# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from tests.unit.train import toy
from vllm_medusa.errors import CheckpointError, ConfigError, MedusaError
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.base import make_spec, read_lm_head
from vllm_medusa.train.curve import draw_curve
from vllm_medusa.train.options import HeadsOptions, TrainOptions
from vllm_medusa.train.pipeline import mean_table, measure_all, split
from vllm_medusa.train.publish import write_json
from vllm_medusa.train.store import AnswerStore


def options(folder: Path, **changes: object) -> TrainOptions:
    values: dict[str, object] = {
        "model": "toy",
        "output": folder / "heads",
        "work": folder / "work",
        "held_out": 0.3,
    }
    return TrainOptions(**(values | changes))  # type: ignore[arg-type]


def filled_store(folder: Path, prompts: list[str]) -> AnswerStore:
    store = AnswerStore(folder)
    answers = [Answer(prompt, [i, i], [1]) for i, prompt in enumerate(prompts)]
    store.add(answers, [torch.zeros(2, 4) for _ in answers])
    return store


def test_a_prompt_is_on_one_side_only(tmp_path: Path) -> None:
    prompts = [f"prompt {n % 50}" for n in range(100)]
    store = filled_store(tmp_path / "store", prompts)
    corpus, held_out, counts = split(store, options(tmp_path))
    trained = {prompts[token] for token in corpus.tokens}
    kept = {prompts[token] for token in held_out.tokens}
    assert not trained & kept
    assert len(trained | kept) == 50
    assert 0.1 < len(held_out) / 200 < 0.5
    assert counts["training_tokens"] == len(corpus)
    assert counts["training_answers"] == len(corpus) // 2


def test_evaluation_prompts_are_never_trained_on(tmp_path: Path) -> None:
    prompts = [f"prompt {n}" for n in range(40)]
    questions = tmp_path / "questions.txt"
    # written a little differently
    questions.write_text("\n".join(f"  Prompt  {n}" for n in range(0, 40, 2)))
    store = filled_store(tmp_path / "store", prompts)
    asked = options(tmp_path, evaluation_prompts=questions)
    corpus, held_out, counts = split(store, asked)
    used = set(corpus.tokens.tolist()) | set(held_out.tokens.tolist())
    assert used == set(range(1, 40, 2))
    assert counts["excluded_answers"] == 20


def test_too_few_answers_are_refused(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "store", ["only one"])
    with pytest.raises(ConfigError, match="too few"):
        split(store, options(tmp_path))


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


def test_missing_base_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        read_lm_head(str(tmp_path / "none"))


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
