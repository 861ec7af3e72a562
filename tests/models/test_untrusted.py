"""Test that model folders of others are treated as data: no code runs, no path leaves the folder.

If an attack succeeded, it would create a marker file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
from hostile import change, copied, saved, with_code, with_honest_pickle, with_pickle, works
from places import ROOT

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import CARD, read_card
from kinopoisk_ft.models.encoder import Encoder
from kinopoisk_ft.models.heads import ENCODER as ENCODER_FOLDER
from kinopoisk_ft.models.mamba_recipe import read_config, read_weights
from kinopoisk_ft.models.saving import load_network
from kinopoisk_ft.models.tokenizers import load_tokenizer
from kinopoisk_ft.models.untrusted import stays_in_folder
from kinopoisk_ft.serving.predictor import Predictor

pytestmark = pytest.mark.usefixtures("nobody_answers")


ENCODER: dict[str, Any] = {
    "revision": None, "pooling": "auto", "dropout": None, "lr": 1e-3, "head_lr": None, "targets": {}
}  # fmt: skip


def test_the_attack_is_one(marker: Path) -> None:
    works(marker)


def test_code_of_a_base_is_not_run(tmp_path: Path, marker: Path) -> None:
    folder = str(with_code(copied(tiny.bert(), tmp_path / "base"), marker))
    recipe = Encoder(name=folder, tokenizer=folder, **ENCODER)
    for load in (lambda: recipe.build(("Bad", "Good"), None), lambda: recipe.build_lm(None),
                 lambda: read_config(folder, None), lambda: load_tokenizer(folder)):  # fmt: skip
        with pytest.raises(UserError, match="cannot be loaded"):
            load()
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["bert", "pooled", "mamba"])
def test_code_of_a_trained_model_is_not_run(tmp_path: Path, marker: Path, kind: str) -> None:
    folder = with_code(saved(kind, "none", tmp_path / "model"), marker)
    if kind == "pooled":
        with_code(folder / ENCODER_FOLDER, marker)
    with pytest.raises(UserError):
        Predictor(folder, "cpu")
    # Now only the tokenizer's `auto_map` is left.
    change(folder / "config.json", auto_map=None)
    with pytest.raises(UserError):
        Predictor(folder, "cpu")
    assert not marker.exists()


def test_a_pickled_base_is_read_without_running_it(tmp_path: Path, marker: Path) -> None:
    folder = str(with_pickle(copied(tiny.bert(), tmp_path / "a"), "pytorch_model.bin", marker))
    with pytest.raises(UserError, match="a pickle file that is damaged or unsafe to load"):
        Encoder(name=folder, tokenizer=folder, **ENCODER).build(("Bad", "Good"), None)
    folder = str(with_pickle(copied(tiny.mamba(), tmp_path / "b"), "pytorch_model.bin", marker))
    with pytest.raises(UserError, match=r"no file model\.safetensors"):
        read_weights(folder, None)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "adapter", "weights"),
    [
        ("bert", "none", "pytorch_model.bin"),
        ("pooled", "none", "pytorch_model.bin"),
        ("bert", "lora", "adapter_model.bin"),
    ],
)
def test_a_trained_model_is_no_pickle(
    tmp_path: Path, marker: Path, kind: str, adapter: str, weights: str
) -> None:
    """Nothing is unpickled, whether the file is an attack or contains the weights."""
    honest, attack = (saved(kind, adapter, tmp_path / name) for name in ("honest", "attack"))
    inner = ENCODER_FOLDER if kind == "pooled" else "."
    with_honest_pickle(honest / inner, weights)
    with_pickle(attack / inner, weights, marker)
    for folder in (honest, attack):
        with pytest.raises(UserError, match="safetensors"):
            load_network(folder)
    assert not marker.exists()


def test_nothing_of_the_package_reads_pickles_or_trusts_code() -> None:
    risky = ("pickle.load", "joblib.load", "read_pickle", "torch.load(", "allow_pickle=True",
             "trust_remote_code=True", "weights_only=False", "yaml.load(", "shell=True",
             "os.system", "eval(\"", "exec(\"", "load_dataset(")  # fmt: skip
    for file in (ROOT / "kinopoisk_ft").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in risky if word in text], file
        for call in ("np.load(", "AutoConfig.from_pretrained(", "AutoTokenizer.from_pretrained("):
            for tail in text.split(call)[1:]:
                setting = "allow_pickle=False" if call == "np.load(" else "trust_remote_code=False"
                assert setting in tail[:120], f"{file}: {call}"


def test_an_adapter_imports_no_module(tmp_path: Path, marker: Path) -> None:
    folder = saved("bert", "lora", tmp_path / "model")
    load_network(folder)
    change(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil_module")
    with pytest.raises(UserError, match="would make PEFT import the module 'evil_module'"):
        load_network(folder)
    assert not marker.exists()


def test_a_card_is_what_it_says(tmp_path: Path) -> None:
    folder = saved("bert", "none", tmp_path / "model")
    for wrong in ({"max_length": "32"}, {"class_names": "Bad"}, {"kind": "pickle"}, {"more": 1}):
        good = (folder / CARD).read_text("utf-8")
        change(folder / CARD, **wrong)
        with pytest.raises(UserError, match=f"{CARD} cannot be read"):
            read_card(folder)
        (folder / CARD).write_text(good, "utf-8")
    (folder / CARD).write_text("[" * 100_000, "utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        read_card(folder)


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    for kind, file in (("pooled", "head.safetensors"), ("mamba", "model.safetensors")):
        folder = saved(kind, "none", tmp_path / kind)
        (folder / file).write_bytes(b"\x08" * 100)
        with pytest.raises(UserError):
            load_network(folder)
        (folder / file).unlink()
        with pytest.raises(UserError):
            load_network(folder)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("model-00001-of-00002.safetensors", True), ("sub/model.safetensors", True),
        ("../x", False), ("a/../../x", False), ("/etc/passwd", False), ("C:\\x", False),
        ("..\\x", False), ("\\\\host\\share", False), ("", False), ("a\0b", False),
    ],
)  # fmt: skip
def test_names_that_stay_inside(name: str, inside: bool) -> None:
    assert stays_in_folder(name) == inside


def test_an_index_of_weights_stays_in_its_folder(tmp_path: Path) -> None:
    copied(tiny.mamba(), tmp_path / "elsewhere")
    for make, recipe in ((tiny.bert, "bert"), (tiny.mamba, "mamba")):
        folder = copied(make(), tmp_path / recipe)
        index = {"weight_map": {"a": "../elsewhere/model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="lists a file outside the model folder"):
            Encoder(name=str(folder), tokenizer=str(folder), **ENCODER)
    with pytest.raises(UserError, match="lists a file outside the model folder"):
        read_weights(str(folder), None)


def test_files_that_lead_out_of_a_model_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("[PAD]\n[UNK]\npassword\n")
    folder = copied(tiny.bert(), tmp_path / "base")
    (folder / "vocab.txt").symlink_to(secret)
    with pytest.raises(UserError, match=r"'vocab\.txt' is a symlink to a path outside"):
        load_tokenizer(str(folder))
    trained = saved("bert", "none", tmp_path / "model")
    (trained / "tokenizer.json").unlink()
    (trained / "tokenizer.json").symlink_to(secret)
    with pytest.raises(UserError, match="symlink to a path outside"):
        Predictor(trained, "cpu")


def test_valid_links_are_followed(tmp_path: Path) -> None:
    """Snapshots in the hub's cache are links, and weights may be on another disk."""
    repo = tmp_path / "models--some--bert"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    copied(tiny.bert(), blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    assert load_tokenizer(str(snapshot)).pad_token == "[PAD]"
    folder = copied(tiny.bert(), tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "big.safetensors")
    weights.symlink_to(tmp_path / "big.safetensors")
    Encoder(name=str(folder), tokenizer=str(folder), **ENCODER).build(("Bad", "Good"), None)
