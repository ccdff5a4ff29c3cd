# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa train` end to end on a tiny random model, through real vLLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.engine.support.models import build_model
from vllm_medusa.checkpoint import load_heads
from vllm_medusa.cli.main import main
from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.generate import GenerateOptions, Generator
from vllm_medusa.train.store import AnswerStore
from vllm_medusa.tree import from_file, load_accuracies

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="training data are made with Model Runner V1"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model("llama", tmp_path_factory.mktemp("base"))


def engine_options(**changes: object) -> GenerateOptions:
    values: dict[str, object] = {
        "num_tokens": 400,
        "max_answer_tokens": 24,
        "round_size": 8,
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 8,
        "kv_cache_gib": 0.05,
    }
    return GenerateOptions(**(values | changes))  # type: ignore[arg-type]


def states_by_transformers(base: Path, answer: Answer) -> torch.Tensor:
    """[num_tokens, H], the state each answer token is drawn from."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([answer.prompt_token_ids + answer.answer_token_ids])
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0]
    return hidden[len(answer.prompt_token_ids) - 1 : -1]


def test_states_are_those_of_the_model(base: Path) -> None:
    generator = Generator(base, engine_options())
    try:
        prompts = [(f"{'word ' * n}question {n}", "test") for n in range(12)]
        answers, generated = generator.answer(prompts, 0.7)
        replayed = generator.states_of(answers)
        written = generator.write_prompts(16, 1.0)
    finally:
        generator.close()
    assert [answer.prompt for answer in answers] == [p for p, _ in prompts]
    for answer, states, again in zip(answers, generated, replayed, strict=True):
        expected = states_by_transformers(base, answer)
        assert len(states) == len(answer.answer_token_ids)
        # kept as bfloat16: 8 bits
        assert torch.allclose(states.float(), expected, rtol=0.01, atol=0.01)
        assert torch.allclose(again.float(), expected, rtol=0.01, atol=0.01)
    assert all(isinstance(text, str) and text.strip() == text for text in written)


def test_base_without_chat_template_is_refused(tmp_path: Path) -> None:
    plain = build_model("llama", tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        Generator(plain, engine_options())


def test_command_writes_all_files_and_goes_on(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"tell me of {n} things" for n in range(60)))
    questions = tmp_path / "questions.jsonl"
    # one question stands among the training prompts too: it must not be trained on
    texts = ["tell me of 7 things", "what is it", "how long was it"]
    questions.write_text("\n".join(json.dumps({"turns": [t]}) for t in texts))
    output, work = tmp_path / "heads", tmp_path / "work"
    command = (
        f"train {base} --output {output} --work {work} --prompts {prompts} "
        f"--evaluation-prompts {questions} --tokens 9999 --answer-tokens 24 "
        "--round 16 --max-model-len 256 --generate-dtype float32 --held-out 0.2 "
        "--num-heads 2 --intermediate-size 32 --projection single --draft-vocab 64 "
        "--epochs 2 --batch-size 64 --tree-nodes 5 --seed 3"
    ).split()
    assert main([*command, "--answers-only"]) == 0
    assert f"answers written to {work}" in capsys.readouterr().out
    assert not output.exists()
    # From here on no engine starts.
    monkeypatch.setattr("vllm_medusa.train.answering.Generator", None)
    assert main(command) == 0

    checkpoint = load_heads(output)
    assert checkpoint.spec.num_heads == 2
    assert checkpoint.spec.draft_vocab_size == 64
    assert len(load_accuracies(output / "accuracies.json")) == 2
    assert from_file(output / "tree.json").num_nodes == 5
    assert (output / "curve.png").read_bytes().startswith(b"\x89PNG")
    recipe = json.loads((output / "recipe.json").read_text())
    assert recipe["data"]["training_answers"] + recipe["data"]["excluded_answers"] < 60
    assert recipe["data"]["excluded_answers"] == 1
    assert set(recipe["measured"]) == {"held_out", "evaluation"}
    for report in recipe["measured"].values():
        assert report["tokens_per_step"]["optimal:8"] >= 1

    answers = AnswerStore(work / "answers").answers
    assert len({answer.prompt for answer in answers}) == len(answers) == 60
    assert {answer.temperature for answer in answers} == {0.0, 0.7}

    # again: nothing is left to do, the same heads come out
    before = (output / "model.safetensors").read_bytes()
    assert main(command) == 0
    assert (output / "model.safetensors").read_bytes() == before
    assert len(AnswerStore(work / "answers").answers) == 60

    # The same answers, their states by transformers.
    live, live_work = tmp_path / "live", tmp_path / "live.work"
    shutil.copytree(work / "evaluation", live_work / "evaluation")
    assert (
        main(
            (
                f"train {base} --output {live} --answers {work}/answers/answers.jsonl "
                f"--evaluation-prompts {questions} --answer-tokens 24 "
                "--max-model-len 256 --held-out 0.2 --num-heads 2 "
                "--intermediate-size 32 --draft-vocab 64 --hidden-states live "
                "--mixed-precision no --sequence-length 256 --batch-size 512"
            ).split()
        )
        == 0
    )
    found = json.loads((live / "recipe.json").read_text())
    assert found["compute"]["hidden_states"] == "live"
    for name, report in recipe["measured"].items():
        assert found["measured"][name]["positions"] == report["positions"]
    assert found["data"]["training_tokens"] == recipe["data"]["training_tokens"]
    assert not list((live_work / "answers").glob("hidden-*"))


def test_missing_prompts_are_refused_before_the_engine_starts(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.txt"
    command = ["train", str(base), "--output", str(tmp_path / "heads")]
    assert main([*command, "--prompts", str(missing)]) == 2
    assert f"error: can't read the prompts from {missing}" in capsys.readouterr().err
