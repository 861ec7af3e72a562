"""Check encoders whose checkpoint contains a classifier, for the same or for other classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from composing import compose_config
from hydra.utils import instantiate
from networks import NAMES
from quick import quick
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    pipeline,
)

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models import checkpoints
from kinopoisk_ft.models.network import Adapted, Network
from kinopoisk_ft.models.saving import load_network, make_card, save_network
from kinopoisk_ft.serving.predictor import Predictor


def classifier(folder: Path, names: tuple[str, ...]) -> torch.Tensor:
    """Save a BERT classifier of these classes; return the weight of its last layer."""
    labels = dict(enumerate(names))
    model = BertForSequenceClassification.from_pretrained(
        tiny.bert(), num_labels=len(names), id2label=labels
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.bert()).save_pretrained(folder)
    weight: torch.Tensor = model.classifier.weight.detach()
    return weight


def adapted(folder: Path, adapter: str = "none", pooling: str = "auto") -> tuple[Network, Adapted]:
    """Build the network with two classes and apply the adapter."""
    chosen = ["model=encoder", f"model.name={folder}", f"model.pooling={pooling}"]
    cfg = compose_config([*chosen, f"adapter={adapter}"])
    network: Network = instantiate(cfg.model).build(NAMES, None)
    return network, instantiate(cfg.adapter).apply(network)


def saved(network: Network, made: Adapted, folder: Path) -> Any:
    """Save the network in the subfolder `saved` of its base model; return the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    card = make_card(network, made, NAMES, max_length=64)
    save_network(network, made, tokenizer, card, folder / "saved")
    return tokenizer


def built(folder: Path, adapter: str = "none", pooling: str = "auto") -> Network:
    return adapted(folder, adapter, pooling)[0]


def test_a_classifier_of_the_same_classes_is_kept_and_trains(tmp_path: Path) -> None:
    weight = classifier(tmp_path, NAMES)
    network = built(tmp_path, "head")
    assert network.fresh == set()
    trained = {name for name, p in network.module.named_parameters() if p.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}
    torch.testing.assert_close(network.module.get_parameter("classifier.weight"), weight)


@pytest.mark.parametrize(
    "names", [("Good", "Bad"), ("LABEL_0", "LABEL_1"), ("negative", "neutral", "positive")]
)
@pytest.mark.parametrize("adapter", quick(["lora", "head", "bitfit"], 1))
def test_a_classifier_of_other_classes_starts_anew(
    names: tuple[str, ...], adapter: str, tmp_path: Path
) -> None:
    weight = classifier(tmp_path, names)
    network, made = adapted(tmp_path, adapter)
    assert network.fresh == {"classifier.weight", "classifier.bias"}
    fresh = [
        p for name, p in network.module.named_parameters()
        if "classifier" in name and p.requires_grad
    ]  # fmt: skip
    assert sorted(tuple(p.shape) for p in fresh) == [(2,), (2, 16)]
    assert not any(torch.equal(p, weight) for p in fresh)
    assert network.module.config.id2label == dict(enumerate(NAMES))
    tokenizer = saved(network, made, tmp_path)
    loaded = load_network(tmp_path / "saved")[0]
    inputs = tokenizer(tiny.GOOD, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, made.module.eval()(**inputs).logits)


def test_only_the_last_layer_of_an_adapters_base_may_have_another_size(tmp_path: Path) -> None:
    classifier(tmp_path, NAMES)
    network, made = adapted(tmp_path, "lora")
    saved(network, made, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "bert.pooler.dense.weight"
    weights[name] = weights[name][:, :5].contiguous()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"'{name}' has the shape \[16, 5\]"):
        load_network(tmp_path / "saved")
    with pytest.raises(UserError, match=rf"'{name}' has the shape \[16, 5\]"):
        built(tmp_path)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_tools_get_probabilities_of_a_former_model_of_another_type(
    problem: str, tmp_path: Path
) -> None:
    classifier(tmp_path, ("a", "b", "c"))
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "problem_type": problem}))
    network, made = adapted(tmp_path)
    saved(network, made, tmp_path)
    predict = pipeline("text-classification", str(tmp_path / "saved"), device="cpu", top_k=None)
    found = {answer["label"]: answer["score"] for answer in predict([tiny.GOOD])[0]}
    expected = Predictor(tmp_path / "saved", "cpu").probabilities([tiny.GOOD])[0]
    assert [found[name] for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-5)


ROBERTA = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 32, "max_position_embeddings": 40}  # fmt: skip


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta"])
def test_a_classifier_that_is_new_below_its_last_layer_gives_way_to_the_mean(
    family: str, tmp_path: Path
) -> None:
    """XLM-RoBERTa defines its encoder after its classifier."""
    config = getattr(transformers, f"{family}Config")(**ROBERTA)
    getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path / "bare")
    bare = built(tmp_path / "bare")
    assert (bare.layout.name, bare.pooling) == ("pooled", "mean")
    pooler = built(tmp_path / "bare", pooling="pooler")
    assert pooler.layout.name == "hf"
    assert pooler.head == ["classifier"]
    assert "classifier.dense.weight" in pooler.fresh
    whole = getattr(transformers, f"{family}ForSequenceClassification")(config)
    whole.save_pretrained(tmp_path / "trained")
    found = built(tmp_path / "trained")
    assert (found.layout.name, found.fresh) == (
        "hf",
        {"classifier.out_proj.weight", "classifier.out_proj.bias"},
    )


@pytest.mark.parametrize("adapter", ["none", "head", "lora", "dora", "ia3"])
def test_every_adapter_gives_the_rate_of_new_weights_to_the_same_weights(
    adapter: str, tmp_path: Path
) -> None:
    """The loaded weights of a classifier train at the rate of the adapter."""
    classifier(tmp_path / "same", NAMES)
    assert adapted(tmp_path / "same", adapter)[1].fresh == set()
    config = transformers.RobertaConfig(**ROBERTA)
    # RoBERTa's classifier has two layers, and only the last one depends on the classes.
    transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path / "two")
    _, made = adapted(tmp_path / "two", adapter)
    assert {name.partition("classifier.")[2].removeprefix("modules_to_save.default.")
            for name in made.fresh} == {"out_proj.weight", "out_proj.bias"}  # fmt: skip
    dense = [p for n, p in made.module.named_parameters() if "classifier" in n and "dense" in n]
    assert sum(p.requires_grad for p in dense) == 2
    assert made.fresh <= {n for n, p in made.module.named_parameters() if p.requires_grad}


def test_other_layouts(tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    network = built(tmp_path, "head")
    assert network.fresh == {"classifier.weight", "classifier.bias"}
    assert network.head == ["classifier"]


@pytest.mark.parametrize("model", ["encoder", "mamba", "mamba2"])
def test_a_revision_is_of_its_own_repository(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[tuple[str, str | None]] = []
    monkeypatch.setattr(checkpoints, "load_tokenizer", lambda *given: requested.append(given))
    for more in (["model.tokenizer=b/b"], ["model.tokenizer=b/b", "model.tokenizer_revision=2"],
                 ["model.tokenizer=a/a"]):  # fmt: skip
        cfg = compose_config([f"model={model}", "model.name=a/a", "model.revision='1'", *more])
        instantiate(cfg.model).load_tokenizer([])
    assert [(name, None if x is None else str(x)) for name, x in requested] == [
        ("b/b", None), ("b/b", "2"), ("a/a", "1")
    ]  # fmt: skip
