"""Check checkpoints that do not fit their tokenizer, their weights or this project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import architectures
import pytest
import tiny
import torch
from architectures import SIZES, checkpoint
from composing import compose_config
from hostile import change, saved
from hydra.utils import instantiate
from networks import NAMES, make
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    FNetModel,
    Gemma3Config,
    Gemma3ForSequenceClassification,
    XLNetModel,
)

from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.models.padding import match_tokenizer
from kinopoisk_ft.models.saving import load_network, make_card, save_network


def built(folder: str | Path, adapter: str = "none", *more: str) -> tuple[Network, Any, Any]:
    cfg = compose_config(["model=encoder", f"model.name={folder}", f"adapter={adapter}", *more])
    recipe = instantiate(cfg.model)
    tokenizer = recipe.load_tokenizer([])
    network = recipe.build(NAMES, tokenizer)
    return network, instantiate(cfg.adapter).apply(network), tokenizer


def padding_matters(module: torch.nn.Module, tokenizer: Any) -> bool:
    rows = tokenizer(tiny.reviews(10, seed=2)[0])["input_ids"]
    with torch.no_grad():
        batch = module.eval()(**pad(rows, tokenizer.pad_token_id)).logits
        single = [module(**pad([row], tokenizer.pad_token_id)).logits for row in rows]
    return not torch.allclose(batch, torch.cat(single), rtol=1e-4, atol=1e-5)


# The id 99,999 lies beyond the embedding.
@pytest.mark.parametrize(
    ("pad_id", "adapter"),
    [
        (7, "none"),
        pytest.param(None, "none", marks=pytest.mark.slow),
        pytest.param(99_999, "none", marks=pytest.mark.slow),
        pytest.param(7, "lora", marks=pytest.mark.slow),
        pytest.param(None, "lora", marks=pytest.mark.slow),
    ],
)
def test_a_decoder_pads_with_the_id_of_the_tokenizer(
    pad_id: int | None, adapter: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    checkpoint(base, "Qwen3")
    change(base / "config.json", pad_token_id=pad_id)
    more = ["adapter.config.target_modules=[q_proj]"] if adapter == "lora" else []
    network, adapted, tokenizer = built(base, adapter, *more)
    assert network.module.config.pad_token_id == tokenizer.pad_token_id
    assert not padding_matters(adapted.module, tokenizer)
    folder = tmp_path / "model"
    save_network(
        network, adapted, tokenizer, make_card(network, adapted, NAMES, max_length=32), folder
    )
    # Earlier versions saved folders in this way.
    if adapter == "none":
        change(folder / "config.json", pad_token_id=pad_id)
    loaded, again, _ = load_network(folder)
    assert not padding_matters(loaded, again)


def test_the_pad_id_of_a_nested_text_config(tmp_path: Path) -> None:
    sizes = SIZES["Gemma3Text"]
    config = Gemma3Config(
        text_config={**sizes, "vocab_size": 200},
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "intermediate_size": 16, "image_size": 28, "patch_size": 14},
    )  # fmt: skip
    tokenizer = architectures.tokenizer()
    module = Gemma3ForSequenceClassification(config)
    module.config.text_config.pad_token_id = None
    match_tokenizer(module, tokenizer, "nested")
    assert module.config.text_config.pad_token_id == module.config.pad_token_id == 0
    assert not padding_matters(module, tokenizer)


def test_positions_that_start_behind_another_pad_id_are_refused(tmp_path: Path) -> None:
    """Setting the tokenizer's pad id would shift all position embeddings."""
    checkpoint(tmp_path, "Roberta", pad_token_id=1)
    with pytest.raises(UserError, match=r"has pad_token_id 0, but .* requires pad_token_id"):
        built(tmp_path)


@pytest.mark.parametrize("model", [XLNetModel, FNetModel])
def test_models_whose_logits_depend_on_padding_are_refused(model: Any, tmp_path: Path) -> None:
    """XLNet's classifier reads the last position; FNet mixes all positions without a mask."""
    tokenizer = architectures.tokenizer()
    sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16} if model is XLNetModel else {
        "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16
    }  # fmt: skip
    config = model.config_class(vocab_size=len(tokenizer), pad_token_id=0, **sizes)
    model(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pooling = "model.pooling=" + ("pooler" if model is XLNetModel else "mean")
    with pytest.raises(UserError, match=r"padding changes the logits|texts of different lengths"):
        built(tmp_path, "none", pooling)


def with_token(folder: str, target: Path, special: bool = False) -> Path:
    """Copy a checkpoint and add a token without an embedding to its tokenizer."""
    shutil.copytree(folder, target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_tokens(["кинопоиск"], special_tokens=special)
    tokenizer.save_pretrained(target)
    return target


@pytest.mark.parametrize("kind", ["bert", "mamba"])
def test_a_token_without_an_embedding_is_refused(kind: str, tmp_path: Path) -> None:
    source = tiny.bert() if kind == "bert" else tiny.mamba()
    rows = json.loads((Path(source) / "config.json").read_text())["vocab_size"]
    folder = with_token(source, tmp_path / "base")
    message = rf"token id {rows} \('кинопоиск'\), but .* only for the ids 0 to {rows - 1}"
    with pytest.raises(UserError, match=message):
        make(kind, "none", f"model.name={folder}", f"model.tokenizer={folder}")
    trained = saved(kind, "none", tmp_path / "model")
    AutoTokenizer.from_pretrained(folder).save_pretrained(trained)
    with pytest.raises(UserError, match=message):
        load_network(trained)


def test_a_special_token_that_no_text_contains_needs_no_embedding(tmp_path: Path) -> None:
    """An example is the image token of Gemma, for which the smallest model has no embedding."""
    folder = with_token(tiny.bert(), tmp_path / "base", special=True)
    built(folder)
    recipe = instantiate(compose_config(["model=encoder", f"model.name={folder}"]).model)
    with pytest.raises(UserError, match="the tokenizer can return the token id"):
        # Pretraining draws random token ids.
        recipe.build_lm(recipe.load_tokenizer([]))


def test_weights_of_another_size_than_the_config(tmp_path: Path) -> None:
    for kind, source in (("bert", tiny.bert()), ("mamba", tiny.mamba())):
        folder = Path(shutil.copytree(source, tmp_path / kind))
        change(folder / "config.json", vocab_size=333)
        with pytest.raises(UserError, match="333"):
            make(kind, "none", f"model.name={folder}", f"model.tokenizer={folder}")


@pytest.mark.parametrize("names", [("Bad", "Good"), ("Good", "Bad")])
def test_classes_are_in_the_order_of_their_ids(names: tuple[str, str], tmp_path: Path) -> None:
    """The order of id2label in config.json does not matter, as in transformers."""
    model = BertForSequenceClassification.from_pretrained(tiny.bert(), num_labels=2)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.bert()).save_pretrained(tmp_path)
    change(tmp_path / "config.json", id2label={"1": names[1], "0": names[0]},
           label2id={names[1]: 1, names[0]: 0})  # fmt: skip
    network, _, tokenizer = built(tmp_path)
    kept = names == NAMES
    assert (network.fresh == set()) == kept
    batch = pad(tokenizer([tiny.GOOD])["input_ids"], tokenizer.pad_token_id)
    with torch.no_grad():
        ours = network.module.eval()(**batch).logits.argmax().item()
        theirs = model.eval()(**batch).logits.argmax().item()
    assert NAMES[ours] == names[theirs] or not kept


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_is_no_base(with_config: bool, tmp_path: Path) -> None:
    folder = saved("bert", "lora", tmp_path / "adapter")
    if with_config:
        shutil.copy(Path(tiny.bert()) / "config.json", folder)
    for recipe in ("encoder", "mamba"):
        cfg = compose_config([f"model={recipe}", f"model.name={folder}"])
        with pytest.raises(Exception, match="a PEFT adapter for the base model") as error:
            instantiate(cfg.model)
        assert tiny.bert() in str(error.value)


def test_attention_is_that_which_the_library_chooses(tmp_path: Path) -> None:
    ways = {
        name: built(checkpoint(tmp_path / name, name))[0].module.encoder.config._attn_implementation
        for name in ("Roberta", "DebertaV2")
    }
    assert ways == {"Roberta": "sdpa", "DebertaV2": "eager"}


def test_a_mamba_is_not_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"model=encoder does not support .*, a 'mamba' model"
    ) as error:
        built(tiny.mamba())
    assert error.value.fix == f"use model=mamba model.name={tiny.mamba()}"


def test_a_mamba_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.mamba(), tmp_path / "base"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    recipe = instantiate(compose_config(["model=mamba", f"model.name={folder}"]).model)
    with pytest.raises(UserError, match="tokenizer '") as error:
        recipe.load_tokenizer([])
    assert "model.tokenizer" in str(error.value)


@pytest.mark.parametrize(
    "damage", [{"intermediate_size": 2.5e16}, {"intermediate_size": {}}, {"dtype": -5.5}]
)
def test_a_mamba_config_with_wrong_types_is_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    base = shutil.copytree(tiny.mamba(), tmp_path / "base")
    change(base / "config.json", **damage)
    recipe = instantiate(compose_config(["model=mamba", f"model.name={base}"]).model)
    for build in (lambda: recipe.build(NAMES, None), recipe.build_skeleton):
        with pytest.raises(UserError, match="damaged or incomplete") as raised:
            build()
        assert raised.value.where == str(base)


def test_a_mamba_that_does_not_fit_into_memory_is_not_called_damaged(tmp_path: Path) -> None:
    base = shutil.copytree(tiny.mamba(), tmp_path / "base")
    # The embeddings would need more than 1 PiB.
    change(base / "config.json", vocab_size=2**50)
    recipe = instantiate(compose_config(["model=mamba", f"model.name={base}"]).model)
    with pytest.raises(UserError, match="memory ran out while the model was loaded") as raised:
        recipe.build(NAMES, None)
    assert raised.value.where == str(base)
