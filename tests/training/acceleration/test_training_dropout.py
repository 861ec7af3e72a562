"""Check what our dropout replaces in networks, what it keeps, and that they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from networks import TWO_QUICK_KINDS, make
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, BertModel

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.acceleration import dropout as placing
from kinopoisk_ft.training.acceleration.dropout import (
    ATTENTION,
    Dropout,
    attention_forward,
    replace_dropout,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def batch(vocabulary: int = 60) -> dict[str, Tensor]:
    ids = torch.randint(5, vocabulary, (3, 12))
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def adapted(kind: str, adapter: str) -> nn.Module:
    _, made, network, _ = make(kind, adapter)
    try:
        module: nn.Module = made.apply(network).module
    except UserError:
        pytest.skip(f"{adapter} does not fit {kind}")
    return module


@pytest.mark.parametrize("adapter", ["none", "freeze", "lora", "dora", "ia3"])
@pytest.mark.parametrize("kind", TWO_QUICK_KINDS)
def test_every_module_is_replaced_and_put_back(kind: str, adapter: str) -> None:
    module = adapted(kind, adapter)
    before = {name: id(part) for name, part in module.named_modules()}
    inputs = batch()
    module.eval()
    want = module(**inputs).logits
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with replace_dropout(module.train(), CPU, "keep"):
        assert not any(type(part) is nn.Dropout for part in module.modules())
        assert [name for name, _ in module.named_modules()] == list(before)
        assert list(module.state_dict()) == list(state)
        module(**inputs).logits.sum().backward()
        torch.testing.assert_close(module.eval()(**inputs).logits, want, rtol=0, atol=1e-6)
    assert {name: id(part) for name, part in module.named_modules()} == before
    assert not any(part.training for part in module.modules())
    assert torch.equal(module(**inputs).logits, want)


def test_put_back_after_an_error() -> None:
    module = adapted("bert", "lora")
    with pytest.raises(RuntimeError, match="stop"), replace_dropout(module, CPU, "keep"):
        raise RuntimeError("stop")
    assert not any(isinstance(part, Dropout) for part in module.modules())


def test_lora_dropout_and_attention_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def count(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        return call

    monkeypatch.setattr(placing, "dropout", count("dropout", placing.dropout))
    monkeypatch.setattr(placing, "attention", count("attention", placing.attention))
    module = adapted("bert", "lora")
    with replace_dropout(module.train(), CPU, "keep"):
        module(**batch())
    # Embeddings; in each of 3 layers, LoRA on query and value, and two outputs; the head.
    assert calls.count("attention") == 3
    assert calls.count("dropout") == 1 + 3 * (2 + 2) + 1


def test_other_devices_keep_their_dropout() -> None:
    module = adapted("bert", "none")
    with replace_dropout(module, torch.device("cuda"), "keep"):
        assert not any(isinstance(part, Dropout) for part in module.modules())


def test_without_dropout_training_is_unchanged() -> None:
    _, _, network, _ = make("bert", "none", "model.dropout=0.0")
    inputs = batch()
    want = network.module.train()(**inputs).logits
    with replace_dropout(network.module, CPU, "keep"):
        torch.testing.assert_close(network.module(**inputs).logits, want, rtol=0, atol=1e-6)


def test_gradient_checkpointing_draws_the_same_masks() -> None:
    model = BertModel.from_pretrained(tiny.bert(), add_pooling_layer=False).train()
    inputs, grads = batch(), []
    with replace_dropout(model, CPU, "keep"):
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(4)
            model.zero_grad()
            model(**inputs).last_hidden_state.sin().sum().backward()
            grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) > 40
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_layers_that_share_weights_draw_unlike_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(x: Tensor, p: float) -> Tensor:
        seen.append(placed(torch.ones_like(x), p))
        return x

    placed = placing.dropout
    monkeypatch.setattr(placing, "dropout", keep)
    config = AlbertConfig(vocab_size=60, embedding_size=8, hidden_size=16, num_hidden_layers=3,
                          num_attention_heads=2, intermediate_size=32, hidden_dropout_prob=0.5,
                          attention_probs_dropout_prob=0.5)  # fmt: skip
    model = AlbertModel(config).train()
    with replace_dropout(model, CPU, "keep"):
        model(**batch())
    shared = [mask for mask in seen if mask.shape == (3, 12, 16)]
    assert len(shared) >= 3
    assert not any(torch.equal(a, b) for i, a in enumerate(shared) for b in shared[:i])


def test_padding_is_not_attended_to() -> None:
    q, k, v = (torch.randn(2, 2, 9, 4) for _ in range(3))
    mask = (torch.arange(9) < torch.tensor([9, 5])[:, None])[:, None, None].expand(2, 1, 9, 9)
    module = nn.Module()
    outs = []
    for filling in (0.0, 100.0):
        v[1, :, 5:] = k[1, :, 5:] = filling
        torch.manual_seed(1)
        outs.append(attention_forward(module, q, k, v, mask, dropout=0.3)[0])
    assert outs[0].shape == (2, 9, 2, 4)
    torch.testing.assert_close(*outs)


def test_options_of_decoders_use_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("not ours to compute")

    monkeypatch.setattr(placing, "attention", refuse)
    q = torch.randn(2, 4, 9, 4)
    module = nn.Module()
    bias = torch.zeros(1, 1, 9, 9, requires_grad=True)
    attention_forward(module, q, q, q, None, dropout=0.3, is_causal=True)
    attention_forward(module, q, q, q, bias, dropout=0.3)
    attention_forward(module, q, q, q, None, dropout=0.0, is_causal=False)
    grouped: Any = nn.Module()
    grouped.num_key_value_groups = 2
    attention_forward(grouped, q, q[:, :2], q[:, :2], None, dropout=0.3, is_causal=False)


def test_a_saved_model_says_nothing_of_it(tmp_path: Path) -> None:
    module: Any = adapted("bert", "none")
    with replace_dropout(module, CPU, "keep"):
        assert module.config._attn_implementation == ATTENTION
        module.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()


def test_steps_differ_and_a_run_repeats() -> None:
    inputs = batch()
    found = []
    for _ in range(2):
        torch.manual_seed(8)
        module = adapted("bert", "none").train()
        with replace_dropout(module, CPU, "keep"):
            found.append([module(**inputs).logits.detach() for _ in range(2)])
    assert not torch.equal(found[0][0], found[0][1])
    np.testing.assert_array_equal(torch.stack(found[0]), torch.stack(found[1]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["bert", "pooled"])
def test_attention_dropout_off_on_every_device(kind: str, device: str) -> None:
    """Without hidden dropout nothing is random, and the logits equal those of evaluation."""
    module = adapted(kind, "none")
    for name, part in module.named_modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5 if name.endswith("attention.self.dropout") else 0.0
    inputs = batch()
    want = module.eval()(**inputs).logits
    module.train()
    with replace_dropout(module, torch.device(device), "keep"):
        assert (module(**inputs).logits - want).abs().max() > 1e-5
    with replace_dropout(module, torch.device(device), "off"):
        torch.testing.assert_close(module(**inputs).logits, want, rtol=0, atol=1e-6)


def test_attention_dropout_off_where_it_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    eager = BertModel.from_pretrained(tiny.bert(), attn_implementation="eager")
    with (
        pytest.raises(UserError, match="no SDPA attention"),
        replace_dropout(eager, CPU, "off"),
    ):
        pass
    with caplog.at_level("INFO"), replace_dropout(adapted("mamba", "none"), CPU, "off"):
        pass
    assert "the model has no attention" in caplog.text
