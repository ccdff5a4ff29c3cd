# SPDX-License-Identifier: Apache-2.0
"""Conversations from data sets that the library `datasets` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_medusa.distill.conversation import Conversation
from vllm_medusa.distill.readers import user_side
from vllm_medusa.distill.source_option import SourceOption
from vllm_medusa.errors import ConfigError
from vllm_medusa.wording import show

COLUMNS = (
    "messages",
    "conversations",
    "conversation",
    "turns",
    "prompt",
    "instruction",
    "question",
    "query",
    "text",
)
"""Looked for in this order if the option names no column."""

_FILE_FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".arrow": "arrow",
}


def hub_conversations(
    option: SourceOption, label: str, task: str
) -> list[Conversation]:
    """One conversation per row of a data set: a text, a list of texts (the user's
    turns), or a list of messages.

    `option.location` is a file, a folder (of files, or from `save_to_disk`), or an id
    of the Hugging Face hub. Rows without a user's text are left out.

    Raises:
        ConfigError: `datasets` is not installed or can't read the set, or a column is
            missing or holds something else.
    """
    rows = _load(option)
    columns = _columns(option, list(rows.column_names))
    found = []
    for number, row in enumerate(rows):
        where = f"{option.location}, row {number}"
        turns, system, is_open = _content([row[name] for name in columns], where)
        if turns:
            name = f"{label}/{number}"
            found.append(Conversation(name, label, task, turns, system, is_open))
    if not found:
        raise ConfigError(
            f"{option.location} holds no user's text in {'+'.join(columns)}: name "
            "another column"
        )
    return found


def _load(option: SourceOption) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "hf sources need the package datasets: pip install 'vllm-medusa[train]'"
        ) from None
    path = Path(option.location).expanduser()
    named = {"split": option.split}
    if option.config:
        named["name"] = option.config
    try:
        if path.is_file():
            if path.suffix not in _FILE_FORMATS:
                raise ConfigError(
                    f"{path} ends in none of {', '.join(_FILE_FORMATS)}: give a file "
                    "that does"
                )
            _refuse(option, ("split", "config", "revision"), "one file has none")
            kind = _FILE_FORMATS[path.suffix]
            return datasets.load_dataset(kind, data_files=str(path), split="train")
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            _refuse(option, ("config", "revision"), "a saved set has none")
            saved = datasets.load_from_disk(str(path))
            if isinstance(saved, datasets.DatasetDict):
                if option.split not in saved:
                    raise ConfigError(
                        f"{path} has no split {option.split!r}: choose one of "
                        f"{', '.join(saved)}"
                    )
                return saved[option.split]
            _refuse(option, ("split",), "the set was saved without splits")
            return saved
        if path.is_dir():
            _refuse(option, ("revision",), "a folder has none")
            return datasets.load_dataset(str(path), **named)
        revision = option.revision or None
        return datasets.load_dataset(option.location, revision=revision, **named)
    except ConfigError:
        raise
    except Exception as error:  # the library raises whatever its readers raise
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"can't load the data set {option.location!r}: {type(error).__name__}: "
            f"{text}"
        ) from error


def _refuse(option: SourceOption, names: Sequence[str], why: str) -> None:
    """Refuse what was given and would not be looked at."""
    default = SourceOption("hf")
    given = [n for n in names if getattr(option, n) != getattr(default, n)]
    if given:
        raise ConfigError(
            f"{', '.join(given)} in --source hf:{option.location}: {why}; leave it out"
        )


def _columns(option: SourceOption, there: list[str]) -> list[str]:
    if option.column:
        wanted = option.column.split("+")
    else:
        wanted = [name for name in COLUMNS if name in there][:1]
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        what = f"no column {missing[0]!r}" if missing else "none of the usual columns"
        raise ConfigError(
            f"{option.location} has {what}: name one of {', '.join(there)} by column="
        )
    return wanted


def _content(values: list[Any], where: str) -> tuple[tuple[str, ...], str | None, bool]:
    """The user's turns, the system's message, and whether the model goes on."""
    first = values[0]
    if len(values) == 1 and isinstance(first, list):
        if all(isinstance(item, str) for item in first):
            return tuple(text for text in first if text.strip()), None, False
        turns, system = user_side(first, where)
        return turns, system, False
    texts = ["" if value is None else value for value in values]
    for value in texts:
        if not isinstance(value, str):
            raise ConfigError(
                f"{where} holds {show(value)}: name columns of texts, or one with a "
                "conversation, by column="
            )
    text = "\n\n".join(value for value in texts if value.strip())
    return ((text,) if text else ()), None, True
