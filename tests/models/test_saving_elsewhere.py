"""Check that other tools refuse folders that they would misread, and that old folders load."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from networks import KINDS, NAMES, make
from peft import AutoPeftModel, AutoPeftModelForSequenceClassification, PeftModel
from places import SAVED
from quick import quick
from saved_networks import TEXTS, save
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MambaModel,
)

from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.tokens import encode_ids
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import read_card
from kinopoisk_ft.models.heads import ENCODER
from kinopoisk_ft.models.saving import load_network, make_card, save_network
from kinopoisk_ft.models.tokenizers import load_tokenizer
from kinopoisk_ft.serving.predictor import Predictor

# The version before format 2 wrote this folder and computed these logits.
OLD = SAVED / "pooled_format_1"
OLD_LOGITS = [
    [-1.2780627012252808, 0.031433265656232834],
    [-1.3253087997436523, 0.025075677782297134],
    [-1.268404483795166, 0.024340294301509857],
]
# Logits of the folder pooled_windows_format_4, which the version before format 5 wrote.
WINDOWS_LOGITS = [
    [-1.9106208086013794, -1.757515549659729],
    [-1.8882237672805786, -2.111485004425049],
    [-1.7412618398666382, -1.7224739789962769],
]
OURS = [kind for kind in KINDS if kind != "bert"]


@pytest.mark.parametrize("adapter", ["none", "lora", "ia3"])
@pytest.mark.parametrize("kind", ["pooled", *(pytest.param(k, marks=pytest.mark.slow)
                                               for k in OURS if k != "pooled")])  # fmt: skip
def test_a_head_of_ours_is_refused_by_peft(tmp_path: Path, kind: str, adapter: str) -> None:
    save(kind, adapter, tmp_path)
    for cls in (AutoPeftModelForSequenceClassification, AutoPeftModel):
        with pytest.raises((OSError, ValueError, KeyError)):
            print(cls.from_pretrained(tmp_path))


@pytest.mark.parametrize("adapter", quick(["lora", "ia3"], 1))
def test_an_adapter_under_our_head_is_refused_on_other_models(tmp_path: Path, adapter: str) -> None:
    """Without an error, PEFT would use an untrained adapter and head on a plain model."""
    base = tiny.bert(with_pooler=False)
    save("pooled", adapter, tmp_path / "pooled")
    for cls in (AutoModelForSequenceClassification, AutoModel):
        with pytest.raises(ValueError, match="odules"):
            PeftModel.from_pretrained(cls.from_pretrained(base), str(tmp_path / "pooled"))
    save("mamba", adapter, tmp_path / "mamba", "adapter.config.target_modules=[in_proj]",
         *(["adapter.config.feedforward_modules=[]"] if adapter == "ia3" else []))  # fmt: skip
    with pytest.raises(ValueError, match="odules"):
        PeftModel.from_pretrained(MambaModel.from_pretrained(tiny.mamba()), str(tmp_path / "mamba"))
    for kind in ("pooled", "mamba"):
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            AutoModel.from_pretrained(tmp_path / kind)


def test_a_folder_of_format_1_gives_the_logits_of_then() -> None:
    found = Predictor(OLD, "cpu").logits(TEXTS)
    np.testing.assert_allclose(found, OLD_LOGITS, atol=1e-5)


def test_a_folder_of_format_4_gives_the_logits_of_then() -> None:
    """The windows of its long review are pooled with the saved attention."""
    folder = SAVED / "pooled_windows_format_4"
    found = Predictor(folder, "cpu").logits(TEXTS)
    np.testing.assert_allclose(found, WINDOWS_LOGITS, atol=1e-5)
    with pytest.raises(ValueError, match=r"kinopoisk_ft\.predict"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_base_of_format_1_gives_equal_logits(tmp_path: Path) -> None:
    expected = save("bert_scratch", "lora", tmp_path)
    for file in (tmp_path / "base" / ENCODER).iterdir():
        file.replace(tmp_path / "base" / file.name)
    (tmp_path / "base" / ENCODER).rmdir()
    torch.testing.assert_close(Predictor(tmp_path, "cpu").logits(TEXTS), expected)


def test_links_out_of_the_encoder_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save("pooled", "none", folder)
    config = folder / ENCODER / "config.json"
    shutil.move(config, tmp_path / "elsewhere.json")
    config.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="a path outside the model folder"):
        load_network(folder)


@pytest.mark.parametrize(
    ("kind", "adapter"), [("bert", "none"), ("pooled", "lora"), ("mamba", "none")]
)
@pytest.mark.parametrize("truncation", ["head", "tail"])
def test_other_tools_cut_long_texts_as_training_did(
    tmp_path: Path, kind: str, adapter: str, truncation: str
) -> None:
    _, made, network, tokenizer = make(kind, adapter)
    adapted = made.apply(network)
    card = make_card(network, adapted, NAMES, max_length=9, truncation=truncation)
    save_network(network, adapted, tokenizer, card, tmp_path)
    assert card.note == ""
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 9
    text = f"{tiny.GOOD} {tiny.BAD}"
    (expected,) = encode_ids([text], tokenizer, Preprocessing(9, truncation))
    assert theirs(text, truncation=True)["input_ids"] == expected
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert encode_ids(
        [text], load_tokenizer(str(tmp_path)), Preprocessing(9, "tail")
    ) == encode_ids([text], tokenizer, Preprocessing(9, "tail"))


def test_the_card_says_where_other_tools_differ(tmp_path: Path) -> None:
    _, made, network, tokenizer = make("bert")
    adapted = made.apply(network)
    how = Preprocessing(9, "head_tail", 50, strip_scores=True)
    card = make_card(network, adapted, NAMES, **asdict(how))
    save_network(network, adapted, tokenizer, card, tmp_path)
    note = read_card(tmp_path).note
    assert "keep the first 9 tokens of a longer text, not its head and tail" in note
    assert "do not truncate texts to 50 characters" in note
    assert "do not remove grades written in a text" in note
    assert AutoTokenizer.from_pretrained(tmp_path).truncation_side == "right"
