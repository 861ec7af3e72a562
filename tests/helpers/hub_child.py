"""Ask a hub for models and data sets in another process, which has its own cache and settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_api
from transformers import AutoModel, AutoTokenizer

from kinopoisk_ft.data.hub import HubDataset
from kinopoisk_ft.data.kinopoisk import Kinopoisk
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.hub_access import access_hub

FIX = "give model.name=<folder>"
Checks = Sequence[tuple[str, Any]]


def ask(checks: Checks, answers: Path) -> None:
    """Write the answer to each check to a file, as JSON.

    A check is "model" and a name, a class of data and its options, or "offline" and a boolean,
    which changes the mode and has no answer.
    """
    found = []
    for kind, argument in checks:
        if kind == "offline":
            constants.HF_HUB_OFFLINE = argument
            continue
        try:
            found.append(_model(argument) if kind == "model" else _data(kind, argument))
        except UserError as error:
            found.append((error.what, error.where, error.fix))
    write_atomically(answers, json.dumps(found))


def ask_in_a_fork(url: str, home: Path, checks: Checks, answers: Path) -> None:
    """Ask with the settings that another process would read from its environment."""
    constants.HF_HUB_OFFLINE = False
    constants.ENDPOINT = hf_api.api.endpoint = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HOME, constants.HF_HUB_CACHE = str(home), str(home / "hub")
    ask(checks, answers)


def _model(name: str) -> tuple[list[int], int]:
    with access_hub("model", name, FIX):
        tokens = AutoTokenizer.from_pretrained(name)("да нет")["input_ids"]
    with access_hub("model", name, FIX):
        return tokens, sum(p.numel() for p in AutoModel.from_pretrained(name).parameters())


def _data(kind: str, options: dict[str, Any]) -> tuple[int, tuple[str, ...], str]:
    data: Any = {"Kinopoisk": Kinopoisk, "HubDataset": HubDataset}[kind](**options)
    split = data.load()
    return split.counts["rows_read"], split.class_names, split.split_digest


if __name__ == "__main__":
    ask(json.loads(sys.argv[1]), Path(sys.argv[2]))
