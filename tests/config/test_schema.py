"""Test the JSON schemas of the config groups with the library jsonschema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf
from places import ROOT
from referencing import Registry, Resource

from kinopoisk_ft.config.schema import read_comments, write_schemas

CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
REFERENCE = re.compile(r"^# yaml-language-server: \$schema=(\S+)$", re.MULTILINE)
# Launchers belong to plugins of Hydra, which checks their options itself.
CHECKED = [file for file in FILES if "launcher" not in file.parts]


def find_schema(file: Path) -> Path:
    """Return the schema that a config file names."""
    (reference,) = REFERENCE.findall(file.read_text("utf-8"))
    return (file.parent / reference).resolve()


SCHEMAS = {path: json.loads(path.read_text("utf-8")) for path in (CONF / "schema").iterdir()}
REGISTRY: Registry[Any] = Registry().with_resources(
    [(path.name, Resource.from_contents(content)) for path, content in SCHEMAS.items()]
)


def is_valid(node: Any, schema: Path) -> bool:
    return Draft202012Validator(SCHEMAS[schema], registry=REGISTRY).is_valid(node)


def read(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file))


def test_each_config_file_is_valid() -> None:
    assert [file for file in FILES if not is_valid(read(file), find_schema(file))] == []


def test_a_typo_is_an_error_in_each_config_file() -> None:
    found = [f for f in CHECKED if is_valid({**read(f), "learning_rat": 1}, find_schema(f))]
    assert CHECKED
    assert found == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("model/encoder", {"pooling": "maen"}),
        ("model/encoder", {"ngrams": 2}),
        ("model/bert", {"head_lr": "high"}),
        ("adapter/lora", {"config": {"_target_": "peft.LoraConfig", "rank": 8}}),
        ("adapter/rslora", {"config": {"use_rslora": True, "rank": 8}}),
        ("trainer/default", {"epochs": 1.5}),
        ("trainer/default", {"loss": {"_target_": "kinopoisk_ft.training.losses.focal", "g": 1}}),
        ("experiment/demo", {"trainer": {"epochs": "six"}}),
        ("experiment/demo", {"data": {"max_lenght": 96}}),
        ("train", {"seed": 0.5}),
    ],
)
def test_a_wrong_value_is_an_error(name: str, changes: dict[str, Any]) -> None:
    file = CONF / f"{name}.yaml"
    assert not is_valid({**read(file), **changes}, find_schema(file))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adapter/lora", {"_target_": "my_package.MyAdapter", "own_option": 1}),
        ("model/encoder", {"name": "${oc.env:ENCODER}", "lr": "${adapter.lr}", "dropout": "???"}),
        ("train", {"seed": None}),
    ],
)
def test_own_code_and_interpolations_are_valid(name: str, changes: dict[str, Any]) -> None:
    file = CONF / f"{name}.yaml"
    assert is_valid({**read(file), **changes}, find_schema(file))


def test_the_committed_schemas_are_current(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    written = {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text("utf-8") for file in (CONF / "schema").iterdir()}
    assert written == kept, "run make schema"


def test_comments_belong_to_the_key_below_or_before_them(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "# The file.\nfirst: 1 # one\nsecond:\n  # Above.\n  inner: '#2' # behind\n"
        "  bare: 3\n# Alone.\nthird: 4\n"
    )
    assert read_comments(file) == {
        "first": "one", "second.inner": "Above. behind", "third": "Alone.",
    }  # fmt: skip
