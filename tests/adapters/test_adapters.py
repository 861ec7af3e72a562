"""Check what each adapter trains on each kind of network, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from networks import ADAPTERS, KINDS, make
from peft import get_peft_model, get_peft_model_state_dict
from quick import quick
from safetensors.torch import load_file
from saved_networks import TEXTS, save
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from kinopoisk_ft.adapters.audit import check_gradients, count_parameters
from kinopoisk_ft.adapters.peft import Peft
from kinopoisk_ft.adapters.plain import Freeze
from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.heads import HuggingFaceLayout
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.training.optim import has_weight_decay


def backward(module: nn.Module, tokenizer: object, steps: int = 1) -> None:
    texts, labels = tiny.reviews(8, seed=3)
    batch = pad(tokenizer(texts)["input_ids"], tokenizer.pad_token_id)  # type: ignore[operator]
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        module.zero_grad()
        nn.functional.cross_entropy(module(**batch).logits, torch.tensor(labels)).backward()
        if step < steps - 1:
            optimizer.step()


# `make test` runs every adapter on a BERT, and two adapters on a Mamba.
PAIRS = sorted(
    itertools.product(KINDS, ADAPTERS),
    key=lambda pair: pair[0] != "bert" and pair not in [("mamba", "none"), ("mamba", "lora")],
)


@pytest.mark.parametrize(("kind", "adapter"), quick(PAIRS, len(ADAPTERS) + 2))
def test_trainable_weights_change_and_others_stay(kind: str, adapter: str) -> None:
    _, made, network, tokenizer = make(kind, adapter)
    adapted = made.apply(network)
    frozen = {n: p.clone() for n, p in adapted.module.named_parameters() if not p.requires_grad}
    assert bool(frozen) == (adapter != "none")
    adapted.module.train()
    backward(adapted.module, tokenizer)
    check_gradients(adapted.module)
    torch.optim.AdamW([p for p in adapted.module.parameters() if p.requires_grad]).step()
    after = dict(adapted.module.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    head = [n for n in after if "classifier" in n and after[n].requires_grad]
    assert head, "the head must train"
    assert set(head) >= {n for n in adapted.fresh if "classifier" in n}


def names(kind: str, adapter: str, *more: str) -> set[str]:
    _, made, network, _ = make(kind, adapter, *more)
    module = made.apply(network).module
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_freeze_leaves_the_last_layer_and_the_head() -> None:
    assert {n.split(".")[2] for n in names("mamba", "freeze") if "layers" in n} == {"2"}
    bert = names("bert", "freeze")
    assert {n.split(".")[3] for n in bert if ".layer." in n} == {"2"}
    assert not any("embeddings" in n for n in bert | names("mamba", "freeze"))
    assert "bert.pooler.dense.weight" in bert


def test_freeze_needs_no_forward_pass_for_layers_and_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator may need a GPU while the module is on the CPU."""

    def fail(_: nn.Module) -> None:
        raise RuntimeError("no kernel")

    expected = names("bert", "freeze")
    monkeypatch.setattr("kinopoisk_ft.adapters.audit.run_example_batch", fail)
    assert names("bert", "freeze") == expected


def test_bitfit_trains_biases_and_head() -> None:
    trained = names("bert", "bitfit")
    assert {n for n in trained if not n.endswith("bias")} == {"classifier.weight"}
    assert any("query.bias" in n for n in trained)


def test_head_trains_the_head_alone() -> None:
    assert names("mamba", "head") == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("target", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_lora_on_mamba_reaches_what_it_names(target: str) -> None:
    _, made, network, tokenizer = make("mamba", "lora", f"adapter.config.target_modules=[{target}]")
    module = made.apply(network).module.eval()
    # The factor B starts at zero, so A gets a gradient from step 2 on.
    backward(module, tokenizer, steps=2)
    gradients = {n: p.grad for n, p in module.named_parameters() if "lora_" in n}
    assert len(gradients) == 3 * 2
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())


def study_bert() -> Network:
    with torch.device("meta"):
        module = BertForSequenceClassification(BertConfig(vocab_size=119547, num_labels=2))
    fresh = {"classifier.weight", "classifier.bias"}
    return Network(
        module=module, layers="bert.encoder.layer", embeddings=["bert.embeddings"],
        head=["classifier"], fresh=fresh, base="rubert", max_positions=512, pooling="pooler",
        layout=HuggingFaceLayout(),
    )  # fmt: skip


def test_study_counts_to_the_unit() -> None:
    assert count_parameters(study_bert().module) == (177_854_978, 177_854_978)
    frozen = Freeze(layers=10, lr=5e-5).apply(study_bert()).module
    assert count_parameters(frozen) == (14_767_874, 177_854_978)
    from composing import compose_config
    from hydra.utils import instantiate

    lora = instantiate(compose_config(["experiment=study_bert_lora"]).adapter)
    assert count_parameters(lora.apply(study_bert()).module) == (296_450, 177_854_978 + 294_912)


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3"])
def test_the_head_under_peft_counts_once(adapter: str) -> None:
    """The total is the plain model's count by transformers plus the weights of the adapter."""
    _, made, network, _ = make("bert", adapter)
    plain = network.module.num_parameters()
    module = made.apply(network).module
    own = get_peft_model_state_dict(module)
    added = sum(value.numel() for name, value in own.items() if "classifier" not in name)
    assert added > 0
    assert count_parameters(module)[1] == plain + added


def test_fresh_pooler_is_never_left_frozen() -> None:
    folder = tiny.bert(with_pooler=False)
    for adapter in ("lora", "head", "freeze", "bitfit"):
        trained = names("bert", adapter, f"model.name={folder}")
        assert any("pooler.dense.weight" in n or "pooler.modules_to_save" in n for n in trained)


def test_a_config_that_is_none_of_peft_is_refused() -> None:
    with pytest.raises(UserError, match="config=-1 is not a config of PEFT"):
        Peft(config=-1, lr=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert", "mamba"])
def test_target_that_matches_nothing_is_refused(kind: str) -> None:
    _, made, network, _ = make(kind, "lora", "adapter.config.target_modules=[qeury]")
    with pytest.raises(UserError, match="'qeury' matches no module"):
        made.apply(network)


def test_adapter_on_the_convolution_is_refused_with_the_reason() -> None:
    _, made, network, _ = make("mamba", "lora", "adapter.config.target_modules=[conv1d]")
    with pytest.raises(UserError, match="would have no effect"):
        made.apply(network)


def test_freezing_more_layers_than_there_are_is_refused() -> None:
    _, made, network, _ = make("bert", "freeze", "adapter.layers=10")
    with pytest.raises(UserError, match="the model has 3"):
        made.apply(network)


MORE_SAVED = "+adapter.config.modules_to_save=[embeddings.LayerNorm]"


@pytest.mark.parametrize("kind", ["bert", "pooled"])
def test_a_users_modules_are_trained_and_saved_with_the_head(kind: str, tmp_path: Path) -> None:
    """The pretrained norm learns at the adapter's rate, and the new head at its own."""
    _, made, network, _ = make(kind, "lora", MORE_SAVED)
    adapted = made.apply(network)
    trained = {n for n, p in adapted.module.named_parameters() if p.requires_grad}
    norms = {n for n in trained if "embeddings.LayerNorm.modules_to_save" in n}
    assert len(norms) == 2
    assert {n for n in trained if ".modules_to_save." in n} == norms | adapted.fresh
    assert any("classifier" in n for n in adapted.fresh)
    assert not norms & adapted.fresh
    expected = save(kind, "lora", tmp_path, MORE_SAVED)
    found = Predictor(tmp_path, "cpu").logits(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    moved = [value for name, value in saved.items() if name.endswith("LayerNorm.weight")]
    # The norm starts with ones, and training changes them.
    assert len(moved) == 1
    assert not torch.equal(moved[0], torch.ones_like(moved[0]))


def test_a_module_to_save_that_matches_nothing_is_refused() -> None:
    _, made, network, _ = make("bert", "lora", "+adapter.config.modules_to_save=[layernorm_x]")
    with pytest.raises(UserError, match="the model has no module 'layernorm_x'"):
        made.apply(network)


class RoundTheModule(nn.Module):
    """A module that uses the weight of a Linear without calling it, as the original Mamba does."""

    def __init__(self) -> None:
        super().__init__()
        self.x_proj, self.classifier = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x @ self.x_proj.weight.T)


def test_adapter_that_trains_nothing_is_found_after_the_first_backward() -> None:
    from peft import LoraConfig

    module = get_peft_model(RoundTheModule(), LoraConfig(target_modules=["x_proj"]))
    module.base_model.model.classifier.requires_grad_(True)
    module(torch.ones(1, 4)).sum().backward()
    with pytest.raises(UserError, match=r"no gradient: .*x_proj\.lora_A"):
        check_gradients(module)


def test_all_gradients_zero_is_found() -> None:
    module = nn.Linear(2, 2)
    (module(torch.ones(1, 2)) * 0).sum().backward()
    with pytest.raises(UserError, match="every gradient is zero"):
        check_gradients(module)


@pytest.mark.parametrize(
    ("kind", "adapter"), [("bert", "none"), ("mamba", "none"), ("bert", "ia3")]
)
def test_weight_decay_spares_norms_biases_the_scan_and_scales(kind: str, adapter: str) -> None:
    _, made, network, _ = make(kind, adapter)
    module = made.apply(network).module
    decaying = {n for n, p in module.named_parameters() if has_weight_decay(n, p)}
    spared = {n for n, _ in module.named_parameters()} - decaying
    ends = ("bias", "A_log", ".D", "ia3_l.default")
    assert all(not n.endswith(ends) and "orm" not in n for n in decaying)
    assert all(n.endswith(ends) or "orm" in n for n in spared)
    assert any("ia3_l" in n for n in spared) == (adapter == "ia3")
