"""Check which modules an adapter changes: PEFT's choice, all linear layers, or given names."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_config, plain
from hydra.utils import instantiate
from networks import make
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from kinopoisk_ft.adapters.peft import Peft
from kinopoisk_ft.adapters.plain import BitFit
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.heads import HuggingFaceLayout, build_pooled_network, describe_encoder
from kinopoisk_ft.models.network import Adapted, Network
from kinopoisk_ft.models.saving import make_card, save_network

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "distilbert": DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "modernbert": ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, pad_token_id=0),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "t5": T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
}


def network(name: str) -> Network:
    """Build a random encoder of this type with our pooling and head."""
    return build_pooled_network(AutoModel.from_config(CONFIGS[name]), 2, "mean")


def with_its_own_head(name: str, head: list[str]) -> Network:
    """Build a random classifier of `transformers` of this type."""
    module = AutoModelForSequenceClassification.from_config(CONFIGS[name])
    return describe_encoder(module, HuggingFaceLayout(), head, pooling="pooler")


@functools.cache
def _group(adapter: str) -> dict[str, Any]:
    cfg = compose_config(["model=encoder", "model.name=unused", f"adapter={adapter}"])
    return dict(plain(cfg)["adapter"])


def adapt(found: Network, adapter: str, **config: Any) -> Adapted:
    """Apply an adapter of conf/adapter with the encoder's targets, or with the given ones."""
    group = _group(adapter)
    made: Peft = instantiate({**group, "config": {**group["config"], **config}})
    return made.apply(found)


def reached(adapted: Adapted) -> set[str]:
    return set(adapted.module.base_model.targeted_module_names)


@pytest.mark.parametrize(("adapter", "config"), [("lora", LoraConfig), ("ia3", IA3Config)])
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "qwen3"])
def test_auto_is_the_choice_of_peft(name: str, adapter: str, config: Any) -> None:
    theirs = get_peft_model(AutoModel.from_config(CONFIGS[name]), config()).base_model
    ours = adapt(network(name), adapter)
    assert reached(ours) == {f"encoder.{one}" for one in theirs.targeted_module_names}
    feedforward = [
        {one for one, part in model.named_modules() if getattr(part, "is_feedforward", False)}
        for model in (ours.module.base_model.model.encoder, theirs.model)
    ]
    assert feedforward[0] == feedforward[1]
    assert bool(feedforward[0]) == (adapter == "ia3")


@pytest.mark.parametrize("adapter", ["lora", "dora", "rslora", "ia3"])
@pytest.mark.parametrize("name", ["distilbert", "modernbert"])
def test_auto_of_an_unknown_type_is_every_linear_layer_of_the_body(name: str, adapter: str) -> None:
    linear = LoraConfig(target_modules="all-linear")
    theirs = get_peft_model(AutoModel.from_config(CONFIGS[name]), linear).base_model
    assert reached(adapt(network(name), adapter)) == {
        f"encoder.{one}" for one in theirs.targeted_module_names
    }


def test_all_linear_leaves_out_every_layer_of_the_head() -> None:
    """DistilBERT's head has two layers; a checkpoint may have trained the first of them."""
    for head in (["classifier"], ["classifier", "pre_classifier"]):
        for targets in ("auto", "all-linear"):
            found = with_its_own_head("distilbert", head)
            adapted = adapt(found, "lora", target_modules=targets)
            assert len(reached(adapted)) == 2 * 6
            assert all(one.startswith("distilbert.transformer.") for one in reached(adapted))
            assert adapted.targets == "k_lin x2, lin1 x2, lin2 x2, out_lin x2, q_lin x2, v_lin x2"


@pytest.mark.parametrize("name", ["modernbert", "qwen3", "t5"])
def test_bitfit_needs_biases_below_the_head(name: str) -> None:
    """Otherwise it would train only the head, without saying so."""
    with pytest.raises(UserError, match="no biases"):
        BitFit(lr=1e-3).apply(network(name))


def test_auto_changes_nothing_for_bert() -> None:
    """The former default names select the same modules; the same seed gives equal weights."""
    named = ["model.targets.lora=[query,value]", "model.targets.ia3=[key,value,output.dense]",
             "model.targets.feedforward=[output.dense]"]  # fmt: skip
    for adapter in ("lora", "ia3"):
        states = []
        for more in ([], named):
            torch.manual_seed(0)
            _, made, found, _ = make("bert", adapter, *more)
            states.append(made.apply(found).module.state_dict())
        assert list(states[0]) == list(states[1])
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
@pytest.mark.parametrize(
    ("name", "targets", "count"),
    [
        ("distilbert", ["q_lin", "v_lin"], 4), ("t5", ["q", "v"], 12), ("gpt2", ["c_attn"], 2),
        ("modernbert", ["Wqkv"], 2), ("qwen3", ["q_proj", "v_proj"], 4), ("bert", ["query"], 2),
        ("bert", ["encoder.layer.1.attention.self.key"], 1), ("bert", ".*layer.0.*query", 1),
    ],
)  # fmt: skip
def test_given_names_are_used(name: str, targets: list[str], count: int, adapter: str) -> None:
    assert len(reached(adapt(network(name), adapter, target_modules=targets))) == count


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
@pytest.mark.parametrize("targets", [["qeury"], ["q_lin", "qeury"], ".*qeury"])
def test_an_unknown_name_lists_the_existing_ones(targets: Any, adapter: str) -> None:
    with pytest.raises(UserError, match="k_lin, lin1, lin2, out_lin, q_lin, v_lin"):
        adapt(network("distilbert"), adapter, target_modules=targets)


def test_auto_works_with_chosen_layers() -> None:
    for layers, count in (([1], 2), (None, 4)):
        adapted = adapt(network("bert"), "lora", layers_to_transform=layers)
        assert len(reached(adapted)) == count


def test_a_model_without_linear_layers_is_refused() -> None:
    found = network("bert")
    found.module.encoder.encoder.layer = nn.ModuleList()
    with pytest.raises(UserError, match="no linear layers below its head"):
        adapt(found, "lora")


def test_the_choice_is_logged_and_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        _, made, found, tokenizer = make("bert", "lora")
        adapted = made.apply(found)
    assert "adapter targets: PEFT's default for 'bert'" in caplog.text
    assert "LORA adapts 6 modules: query x3, value x3" in caplog.text
    card = make_card(found, adapted, ("Bad", "Good"), max_length=64)
    save_network(found, adapted, tokenizer, card, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(saved["target_modules"]) == {"query", "value"}


@pytest.mark.parametrize(("name", "count"), [("bert", 32), ("roberta", 31)])
def test_a_text_may_have_as_many_tokens_as_there_are_positions(name: str, count: int) -> None:
    """RoBERTa does not use the position of its pad id, 0."""
    found = network(name)
    assert found.max_positions == count
    module = found.module.eval()
    ids = torch.full((1, count + 1), 5)
    with torch.no_grad():
        assert module(ids[:, :count], torch.ones(1, count)).logits.shape == (1, 2)
        with pytest.raises((IndexError, RuntimeError)):
            module(ids, torch.ones(1, count + 1))
