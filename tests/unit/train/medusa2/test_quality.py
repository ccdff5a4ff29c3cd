# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path

import pytest
import torch

from tests.unit.train.medusa2 import tiny
from vllm_medusa.errors import QualityError
from vllm_medusa.json_file import write_json
from vllm_medusa.train.backbone import hidden_states
from vllm_medusa.train.medusa2.held_out import Observer
from vllm_medusa.train.medusa2.quality import Bounds, Quality, QualityReport

BEFORE = Quality(perplexity=2.0, agreement=1.0, positions=100)


@pytest.mark.parametrize(
    ("perplexity", "agreement", "reason"),
    [
        (2.03, 0.95, None),
        (1.5, 1.0, None),
        (2.05, 1.0, r"rose from 2.0000 to 2.0500 \(\+2.50%\), allowed are \+2.00%"),
        (math.nan, 1.0, "perplexity rose"),
        (2.0, 0.94, "at 94.00% of 100 positions, at least 95.00%"),
        (2.0, math.nan, "positions"),
    ],
)
def test_bounds(perplexity: float, agreement: float, reason: str | None) -> None:
    report = QualityReport(Bounds(0.02, 0.95), BEFORE)
    now = Quality(perplexity, agreement, 100)
    if reason is None:
        report.add(10, now)
        report.finish(now)
        assert report.stopped is None
        assert report.after == now
        return
    with pytest.raises(QualityError, match=reason):
        report.add(10, now)
    assert report.stopped is not None
    assert "after step 10" in report.stopped
    with pytest.raises(QualityError, match="after merging"):
        report.finish(now)
    assert json.loads(json.dumps(report.to_json()))["history"][0]["step"] == 10


def test_without_bounds_everything_passes() -> None:
    report = QualityReport(Bounds(None, None), BEFORE)
    report.add(1, Quality(1e9, 0.0, 100))
    report = QualityReport(Bounds(math.inf, 0), BEFORE)
    report.add(1, Quality(1e9, 0.0, 100))


def test_report_of_numbers_that_json_has_no_word_for_is_written(tmp_path: Path) -> None:
    report = QualityReport(Bounds(math.inf, 0.5), BEFORE)
    report.add(1, Quality(math.inf, 1.0, 100))
    with pytest.raises(QualityError, match="after step 2"):
        report.add(2, Quality(math.nan, math.nan, 100))
    report.after = Quality(math.inf, 0.75, 100)
    write_json(tmp_path / "quality.json", report.to_json())
    read = json.loads((tmp_path / "quality.json").read_text())
    assert read["bounds"] == {"max_perplexity_increase": None, "min_agreement": 0.5}
    assert read["history"] == [
        {"step": 1, "perplexity": None, "agreement": 1.0},
        {"step": 2, "perplexity": None, "agreement": None},
    ]
    assert read["before"]["perplexity"] == 2
    assert read["after"] == {"perplexity": None, "agreement": 0.75, "positions": 100}


def test_perplexity_and_agreement_are_those_of_the_models(base: Path) -> None:
    answers = tiny.written(base, 300)[:9]
    model, other = tiny.load(base), tiny.load(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.03 * torch.randn(weight.shape)
    observer = Observer(answers, 4, torch.float32, torch.device("cpu"))
    before = observer.look_at_original(
        lambda batch: hidden_states(model, batch), model.lm_head.weight.detach()
    )
    observed = observer.look(
        lambda batch: hidden_states(other, batch), other.lm_head.weight.detach()
    )
    losses, agrees = [], []
    for answer in answers:
        ids = torch.tensor([answer.prompt_token_ids + answer.answer_token_ids])
        begin = len(answer.prompt_token_ids) - 1
        with torch.no_grad():
            here = other(ids).logits[0, begin:-1]
            there = model(ids).logits[0, begin:-1]
        losses.append(
            torch.nn.functional.cross_entropy(
                here, ids[0, begin + 1 :], reduction="none"
            )
        )
        agrees.append(here.argmax(-1) == there.argmax(-1))
    now = observer.quality(observed)
    assert before.agreement == 1
    assert now.positions == before.positions == 9 * tiny.LENGTH
    assert now.perplexity == pytest.approx(math.exp(torch.cat(losses).mean()), rel=1e-4)
    share = torch.cat(agrees).double().mean().item()
    assert now.agreement == pytest.approx(share, abs=0.01)
    assert 0.2 < now.agreement < 1
    assert now.perplexity > before.perplexity
    corpus = observed.corpus
    assert corpus.tokens.tolist() == [t for a in answers for t in a.answer_token_ids]
    assert corpus.answers.bincount().tolist() == [tiny.LENGTH] * 9
    assert len(corpus.hidden) == len(corpus.tokens)
