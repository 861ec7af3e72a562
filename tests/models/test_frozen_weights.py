"""Check a base in bf16: logits, training, saving, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import prefixed
import pytest
import tiny
import torch
from composing import change_config, compose_config
from hydra.utils import instantiate
from networks import NAMES, make
from peft import get_peft_model
from quick import quick
from saved_networks import TEXTS, save
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from kinopoisk_ft.adapters.audit import check_gradients
from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import read_card
from kinopoisk_ft.models.frozen_weights import (
    Bf16Conv1D,
    Bf16Embedding,
    Bf16Linear,
    check_stored,
    store_in_bf16,
    store_in_fp32,
)
from kinopoisk_ft.models.saving import load_network
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.tasks.finetune import finetune
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.objective import Classification

BF16 = "model.dtype=bf16"
# The relative distance between two neighbouring numbers of bfloat16, with 8 significant bits.
STEP = 2**-8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Model(nn.Sequential):
    """A model with layers after token embeddings, as `store_in_bf16` expects it."""

    def get_input_embeddings(self) -> nn.Module:
        return self[0]


def test_products_and_gradients_are_those_of_the_rounded_weights() -> None:
    layers: list[Any] = [nn.Linear(6, 5), nn.Linear(5, 6, bias=False), Conv1D(4, 6)]
    module = Model(nn.Embedding(9, 6), *layers)
    rounded = [p.detach().bfloat16().float() if p.ndim > 1 else p for p in module.parameters()]
    expected = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 6, bias=False),
                             Conv1D(4, 6))  # fmt: skip
    with torch.no_grad():
        for parameter, value in zip(expected.parameters(), rounded, strict=True):
            parameter.copy_(value)
    store_in_bf16(module.requires_grad_(False))
    kinds = [type(part) for part in module]
    assert kinds == [Bf16Embedding, Bf16Linear, Bf16Linear, Bf16Conv1D]
    assert [p.dtype for p in module.parameters()] == [
        torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16,
        torch.float32,
    ]  # fmt: skip
    ids = torch.arange(8).reshape(2, 4)
    torch.testing.assert_close(module(ids), expected(ids), rtol=0, atol=0)
    x = torch.randn(2, 3, 6, requires_grad=True)
    parts = (nn.Sequential(*net[1:]) for net in (module, expected))
    own, other = (torch.autograd.grad(part(x).square().sum(), x)[0] for part in parts)
    torch.testing.assert_close(own, other)
    store_in_fp32(module, ["1"])
    assert module[1].weight.dtype == torch.float32
    assert module[2].weight.dtype == torch.bfloat16


def logits(module: nn.Module, tokenizer: Any) -> Tensor:
    ids = tokenizer(TEXTS, truncation=True, max_length=60)["input_ids"]
    with torch.no_grad():
        found: Tensor = module.eval()(**pad(ids, tokenizer.pad_token_id)).logits
    return found


def build(folder: str, *more: str) -> tuple[Any, Any]:
    cfg = change_config(["model=encoder", f"model.name={folder}", "adapter=lora", *more])
    recipe = instantiate(cfg.model)
    tokenizer = recipe.load_tokenizer([])
    torch.manual_seed(0)
    network = recipe.build(NAMES, tokenizer)
    return instantiate(cfg.adapter).apply(network).module, tokenizer


@pytest.mark.parametrize(
    "architecture",
    quick(
        [
            "Qwen3",
            "GPT2",
            *sorted({*architectures.SIZES} - {"Qwen3", "GPT2", *architectures.OUR_OWN}),
        ],
        2,
    ),
)
def test_logits_are_near_those_of_an_fp32_base(architecture: str, tmp_path: Path) -> None:
    """The matrices have the same rounded values, so logits differ by a few rounding errors."""
    folder = architectures.checkpoint(tmp_path / "model", architecture)
    module, tokenizer = build(folder, BF16)
    base, _ = build(folder)
    assert torch.bfloat16 in {p.dtype for p in module.parameters()}
    assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}
    # Both heads are random, so give the second one the weights of the first.
    heads = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in (module, base)]
    with torch.no_grad():
        for name, parameter in heads[1].items():
            parameter.copy_(heads[0][name])
    found, expected = logits(module, tokenizer), logits(base, tokenizer)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=8 * STEP * float(expected.abs().max()), rtol=0)
    assert not torch.equal(found, expected)


def test_layers_above_a_prefix_cache_give_the_same_logits() -> None:
    _, adapted, cached, _ = prefixed.apply("bert", "fp32", "lora", prefixed.UPPER, BF16)
    rows, rng = np.arange(6), np.random.default_rng(0)
    objective = cached.make_objective()
    train = cached.parts["train"]
    whole = Classification(0).collate(Examples(train.input_ids, train.labels), rows, rng)
    with torch.no_grad():
        found = objective.logits(adapted.module.eval(), objective.collate(train, rows, rng))
        expected = Classification(0).logits(adapted.module, whole)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


class Direct(Model):
    """A module that multiplies by a layer's matrix without calling the layer."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self[0](input_ids) @ self[1].weight.T


def test_code_that_uses_the_matrices_itself_is_refused() -> None:
    module = Direct(nn.Embedding(9, 6), nn.Linear(6, 5))
    store_in_bf16(module)
    with pytest.raises(UserError, match="code of 'some/model' cannot compute with matrices"):
        check_stored(module, "some/model")


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_adapters_and_head_train_in_any_precision(kind: str, tmp_path: Path) -> None:
    folder = architectures.checkpoint(tmp_path / "model", "Llama")
    module, tokenizer = build(folder, BF16)
    before = {n: p.clone() for n, p in module.named_parameters()}
    texts, labels = tiny.reviews(8, seed=3)
    batch = pad(tokenizer(texts)["input_ids"], tokenizer.pad_token_id)
    copies: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        # No copy of a base matrix may be stored.
        own = x.untyped_storage().data_ptr() in storages
        if x.dtype == torch.float32 and not own and x.ndim == 2 and tuple(x.shape) in shapes:
            copies.append(tuple(x.shape))
        return x

    matrices = [p for p in module.parameters() if p.dtype == torch.bfloat16]
    shapes = {tuple(shape) for p in matrices for shape in (p.shape, p.T.shape)}
    storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module.train()
    for _ in range(2):
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
            torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"),
        ):
            loss = nn.functional.cross_entropy(module(**batch).logits, torch.tensor(labels))
        loss.backward()
        check_gradients(module)
        optimizer.step()
        optimizer.zero_grad()
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in module.named_parameters() if p.requires_grad}
    assert copies == []


@pytest.mark.parametrize("kind", ["bert", "pooled"])
def test_saved_models_have_adapter_and_head_alone(kind: str, tmp_path: Path) -> None:
    more = ["+adapter.config.modules_to_save=[embeddings.LayerNorm]"]
    expected = save(kind, "lora", tmp_path, BF16, *more)
    assert read_card(tmp_path).dtype == "bf16"
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    whole = sum(p.nbytes for p in make(kind)[2].module.parameters())
    assert size < whole / 3
    named = json.loads((tmp_path / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == tiny.bert(with_pooler=kind == "bert")
    module, _, _ = load_network(tmp_path)
    dtypes = {n: p.dtype for n, p in module.named_parameters()}
    assert torch.bfloat16 in dtypes.values()
    trained = [n for n in dtypes if "lora_" in n or ".modules_to_save." in n]
    assert {dtypes[n] for n in trained} == {torch.float32}
    np.testing.assert_allclose(Predictor(tmp_path, "cpu").logits(TEXTS), expected, atol=1e-5)


def test_transformers_merges_the_adapter_in_fp32(tmp_path: Path) -> None:
    expected = save("pooled", "lora", tmp_path, BF16)
    _, tokenizer, _ = load_network(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(model, tokenizer), expected, atol=1e-5, rtol=1e-4)


def test_cards_of_fp32_models_say_so(tmp_path: Path) -> None:
    save("bert", "lora", tmp_path)
    assert read_card(tmp_path).dtype == "fp32"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter=none"], "only if all weights of the base are frozen"),
        (["adapter=freeze"], "only if all weights of the base are frozen"),
        (["adapter=lora", "trainer.strategy=fsdp"], "shards only weights of one dtype"),
    ],
)
def test_refused_before_data_are_read(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("kinopoisk_ft.data.demo.Demo.load", fail)
    cfg = compose_config(["data=demo", "model=encoder", f"model.name={tiny.bert()}", BF16,
                          *overrides])  # fmt: skip
    with pytest.raises(UserError, match=message):
        finetune(cfg, Tracker(uri=None, experiment="none"), "run", tmp_path)


def test_pretraining_is_refused() -> None:
    recipe = instantiate(compose_config(["model=encoder", f"model.name={tiny.bert()}", BF16]).model)
    with pytest.raises(UserError, match="does not work with pretraining"):
        recipe.check_pretraining()


def test_an_adapter_that_trains_a_matrix_of_the_base_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, made, network, _ = make("bert", "lora", BF16)

    def thaw(module: nn.Module, config: Any) -> Any:
        wrapped = get_peft_model(module, config)
        wrapped.base_model.model.bert.encoder.layer[0].output.dense.requires_grad_(True)
        return wrapped

    monkeypatch.setattr("kinopoisk_ft.adapters.peft.get_peft_model", thaw)
    with pytest.raises(UserError, match="trained weights must be fp32"):
        made.apply(network)
