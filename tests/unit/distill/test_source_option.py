# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from vllm_medusa.distill.source_option import SourceOption
from vllm_medusa.errors import ConfigError


def test_all_forms() -> None:
    parse = SourceOption.parse
    assert parse("self") == SourceOption("self")
    assert parse("templates,weight=0.5") == SourceOption("templates", weight=0.5)
    found = parse("prompts:/data/a:b.txt,task=law,weight=2")
    assert found == SourceOption("prompts", "/data/a:b.txt", 2.0, "law")
    assert found.name == "prompts:a:b.txt"
    found = parse("hf:owner/set,split=test,column=instruction+input,config=en")
    assert (found.split, found.column, found.config) == (
        "test",
        "instruction+input",
        "en",
    )
    assert found.name == "hf:set"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' in --source '' is no kind of source"),
        ("share:x", r"'share' .* \(did you mean 'sharegpt'\?\): give one of prompts"),
        ("prompts", "does not say where: give prompts:LOCATION"),
        ("self:x", "self takes no location"),
        ("self,weight", "'weight' in .* must be key=value"),
        ("self,weight=", "must be key=value"),
        ("prompts:a,b.txt", "a location can't hold a comma"),
        ("self,wieght=2", r"'wieght' .* no option of self \(did you mean 'weight'\?\)"),
        ("self,split=x", "'split' in .* is no option of self"),
        ("self,weight=1,weight=2", "weight is given twice"),
        ("self,weight=0", "the weight '0' .* must be a number above 0"),
        ("self,weight=nan", "must be a number above 0"),
        ("self,weight=inf", "must be a number above 0"),
        ("self,weight=much", "the weight 'much'"),
    ],
)
def test_what_can_not_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SourceOption.parse(text)
