"""Check that recomputed layers give the same gradients and save memory, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import numpy as np
import prefixed
import pytest
import stand_ins
import tiny
import torch
from composing import compose_config
from hydra.utils import instantiate
from networks import KINDS, NAMES, make
from quick import quick
from short_fit import short_fit, weights
from torch import Tensor, nn

from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tasks.finetune import finetune
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training import memory
from kinopoisk_ft.training.acceleration import unpadded
from kinopoisk_ft.training.acceleration.dropout import replace_dropout
from kinopoisk_ft.training.acceleration.gradient_checkpointing import recompute_activations
from kinopoisk_ft.training.acceleration.unpadded import use_unpadded_attention
from kinopoisk_ft.training.precision import Precision

CPU = torch.device("cpu")
ON = "trainer.gradient_checkpointing=true"


def gradients(
    module: nn.Module, tokenizer: Any, enabled: bool, kind: str = "fp32"
) -> tuple[dict[str, Tensor], int]:
    """Return the gradients of a training step, and the bytes kept for the backward pass."""
    texts, labels = tiny.reviews(8, seed=3)
    batch = pad(tokenizer(texts)["input_ids"], tokenizer.pad_token_id)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    precision = Precision(kind, CPU)  # type: ignore[arg-type]
    torch.manual_seed(5)
    module.train().zero_grad()
    with (
        replace_dropout(module, CPU, "keep"), use_unpadded_attention(module, precision),
        recompute_activations(module, enabled),
    ):  # fmt: skip
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), precision.autocast():
            loss = nn.functional.cross_entropy(module(**batch).logits, torch.tensor(labels))
        loss.backward()
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert found
    return found, sum(saved.values())


def check_equal(module: nn.Module, tokenizer: Any, kind: str = "fp32") -> None:
    expected, more = gradients(module, tokenizer, False, kind)
    found, less = gradients(module, tokenizer, True, kind)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)
    assert less < more
    # Afterwards, no layer has the setting.
    assert not any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


@pytest.mark.parametrize(
    ("kind", "adapter"),
    quick(
        [
            ("bert", "none"), ("mamba", "lora"), ("mamba2", "none"), ("pooled", "freeze"),
            ("bert_scratch", "lora"),
            *((kind, adapter) for kind in KINDS for adapter in ("none", "freeze", "lora", "dora",
              "ia3", "bitfit")),
        ],
        5,
    ),
)  # fmt: skip
def test_gradients_are_the_same(kind: str, adapter: str) -> None:
    """Dropout is on, in the attention and in LoRA too, and some layers are frozen."""
    _, made, network, tokenizer = make(kind, adapter)
    check_equal(made.apply(network).module, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "mamba"])
def test_gradients_in_bf16_are_the_same(kind: str) -> None:
    _, made, network, tokenizer = make(kind, "lora")
    check_equal(made.apply(network).module, tokenizer, "bf16")


# transformers does not implement checkpointing for the first three. The others are Mamba, which
# model=encoder refuses and other tests cover.
NOT_HERE = ("Albert", "MPNet", "Funnel", "FalconMamba", "Mamba", "Mamba2")


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize(
    "architecture",
    quick(
        ["GPT2", *sorted({*architectures.SIZES} - {"GPT2", *NOT_HERE})], 1
    ),
)  # fmt: skip
def test_gradients_of_other_architectures_are_the_same(
    architecture: str, adapter: str, tmp_path: Path
) -> None:
    folder = architectures.checkpoint(tmp_path / "model", architecture)
    cfg = compose_config(["model=encoder", f"model.name={folder}", f"adapter={adapter}"])
    recipe = instantiate(cfg.model)
    recipe.check_gradient_checkpointing()
    tokenizer = recipe.load_tokenizer([])
    module = instantiate(cfg.adapter).apply(recipe.build(NAMES, tokenizer)).module
    check_equal(module, tokenizer)


def test_unpadded_attention_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.flash_attn(monkeypatch)
    monkeypatch.setattr(unpadded.gpu_package, "find_problem", lambda *_: None)
    cuda = Precision("bf16", CPU)
    cuda.device = torch.device("cuda")
    _, made, network, tokenizer = make("bert", "lora")
    module = made.apply(network).module.train()
    texts, labels = tiny.reviews(8, seed=3)
    batch = pad(tokenizer(texts)["input_ids"], tokenizer.pad_token_id)
    found = []
    for enabled in (False, True):
        torch.manual_seed(5)
        module.zero_grad()
        with use_unpadded_attention(module, cuda), recompute_activations(module, enabled):
            assert network.module.config._attn_implementation == unpadded.UNPADDED
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(module(**batch).logits, torch.tensor(labels))
            loss.backward()
        found.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
def test_a_training_is_the_same(kind: str, tmp_path: Path) -> None:
    """With micro-batches and dropout, all losses and weights are the same."""
    more = ["trainer.micro_batch_size=5", "trainer.accumulate=2"]
    plain, expected = short_fit(tmp_path / "plain", *more, kind=kind, dropout=0.3)
    state, found = short_fit(tmp_path / "recomputed", ON, *more, kind=kind, dropout=0.3)
    assert found.values == expected.values
    assert torch.equal(weights(state), weights(plain))


@pytest.mark.parametrize("kind", ["bert", "mamba"])
def test_layers_above_a_prefix_cache_are_recomputed(kind: str) -> None:
    """The cached activations that enter the upper layers need no gradients."""
    found = []
    for enabled in (False, True):
        _, adapted, cached, _ = prefixed.apply(kind, "fp32", "freeze", "adapter.layers=1")
        objective = cached.make_objective()
        batch = objective.collate(cached.parts["train"], np.arange(6), np.random.default_rng(0))
        torch.manual_seed(5)
        with recompute_activations(adapted.module.train(), enabled):
            objective.loss_sum(adapted.module, batch)[0].backward()
        found.append({n: p.grad for n, p in adapted.module.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
def test_a_compiled_training_is_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile
    trace = lambda function, **options: real(function, backend="eager", dynamic=True)  # noqa: E731
    monkeypatch.setattr(torch, "compile", trace)
    compiled = "trainer.compile=default"
    plain, expected = short_fit(tmp_path / "plain", compiled, kind=kind)
    state, found = short_fit(tmp_path / "recomputed", compiled, ON, kind=kind)
    for name in ("train_loss", "val_loss"):
        np.testing.assert_allclose(found.of(name), expected.of(name), atol=1e-6)
    torch.testing.assert_close(weights(state), weights(plain), atol=1e-5, rtol=0)


class Plain(nn.Module):
    """A classifier whose layers do not support gradient checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(2, 2)


def test_a_model_without_support_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="layers of Plain do not support gradient checkpointing"),
        recompute_activations(Plain(), True),
    ):
        raise AssertionError
    folder = architectures.checkpoint(tmp_path / "albert", "Albert")
    recipe = instantiate(compose_config(["model=encoder", f"model.name={folder}"]).model)
    with pytest.raises(UserError, match="not implement gradient checkpointing for the 'albert'"):
        recipe.check_gradient_checkpointing()


PREFIX = ["adapter=lora", "adapter.config._target_=peft.PrefixTuningConfig",
          "~adapter.config.r", "~adapter.config.lora_alpha", "~adapter.config.lora_dropout",
          "~adapter.config.bias", "~adapter.config.target_modules",
          "+adapter.config.num_virtual_tokens=2"]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=tfidf"], "TF-IDF has no layers"),
        (["model=bert_scratch", "adapter=head"], "adapter=head freezes all layers"),
        (["model=bert_scratch", *PREFIX], "PrefixTuningConfig does not work with gradient"),
    ],
)
def test_refused_before_data_are_read(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("kinopoisk_ft.data.demo.Demo.load", fail)
    cfg = compose_config(["data=demo", ON, *overrides])
    with pytest.raises(UserError, match=message):
        finetune(cfg, Tracker(uri=None, experiment="none"), "run", tmp_path)


@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
def test_the_prediction_counts_the_inputs_and_one_layer(kind: str, tmp_path: Path) -> None:
    """For 12 layers, the prediction falls to the layers' inputs and the tensors of one layer."""
    kept = []
    for enabled in ("false", "true"):
        state, _ = short_fit(
            tmp_path / enabled, "trainer.max_steps=1", "model.num_layers=12", kind=kind
        )
        train = memory.Examples([[5] * 60], np.zeros(1, dtype=np.int64))
        with recompute_activations(state.model.train(), enabled == "true"):
            kept.append(memory._count_saved_bytes(state, train))
    inputs = 12 * 60 * 16 * 4
    assert inputs + kept[0] / 13 < kept[1] < inputs + kept[0] / 6
