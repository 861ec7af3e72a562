"""Check each architecture: it trains, padding changes no logits, frozen weights stay unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from architectures import SIZES, checkpoint
from composing import compose_config
from hydra.utils import instantiate
from networks import NAMES
from torch import Tensor, nn
from transformers import AutoConfig

from kinopoisk_ft.adapters.audit import check_gradients
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.checkpoints import check_dropout, set_dropout
from kinopoisk_ft.models.network import Adapted, Network
from kinopoisk_ft.models.saving import load_network, make_card, save_network
from kinopoisk_ft.training.batching import pad

QUICK = ("T5",)
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SIZES]
NO_LIST = ("Albert", "Funnel")  # of layers
LIST = [p for p in ALL if p not in NO_LIST and getattr(p, "values", [""])[0] not in NO_LIST]


def built(folder: str, *overrides: str) -> tuple[Network, Adapted, Any]:
    """Build a network, the module to train, and the tokenizer."""
    cfg = compose_config(["model=encoder", f"model.name={folder}", *overrides])
    recipe = instantiate(cfg.model)
    tokenizer = recipe.load_tokenizer([])
    network = recipe.build(NAMES, tokenizer)
    return network, instantiate(cfg.adapter).apply(network), tokenizer


def rows(tokenizer: Any) -> list[list[int]]:
    found: list[list[int]] = tokenizer(tiny.reviews(10, seed=5)[0])["input_ids"]
    return found


def step(adapted: Adapted, tokenizer: Any) -> None:
    """Train one step, with the gradient check of a run."""
    batch = pad(rows(tokenizer), tokenizer.pad_token_id)
    logits = adapted.module.train()(**batch).logits
    nn.functional.cross_entropy(logits, torch.arange(10) % 2).backward()
    check_gradients(adapted.module)
    trained = [p for p in adapted.module.parameters() if p.requires_grad]
    torch.optim.AdamW(trained, lr=0.01).step()


@torch.no_grad()
def one_by_one(module: nn.Module, tokenizer: Any) -> Tensor:
    pad_id = tokenizer.pad_token_id
    return torch.cat([module(**pad([row], pad_id)).logits for row in rows(tokenizer)])


@torch.no_grad()
def batched(module: nn.Module, tokenizer: Any) -> Tensor:
    logits: Tensor = module.eval()(**pad(rows(tokenizer), tokenizer.pad_token_id)).logits
    return logits


@pytest.mark.parametrize("architecture", ALL)
def test_it_trains_and_a_batch_has_the_logits_of_single_rows(
    architecture: str, tmp_path: Path
) -> None:
    """Check also after training, saving and loading."""
    network, adapted, tokenizer = built(checkpoint(tmp_path / "base", architecture))
    step(adapted, tokenizer)
    logits = batched(adapted.module, tokenizer)
    torch.testing.assert_close(logits, one_by_one(adapted.module, tokenizer), rtol=1e-4, atol=1e-5)
    card = make_card(network, adapted, NAMES, max_length=64)
    save_network(network, adapted, tokenizer, card, tmp_path / "model")
    loaded, again, _ = load_network(tmp_path / "model")
    torch.testing.assert_close(batched(loaded, again), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["Longformer", "BigBird", "RoFormer"])
def test_the_classifier_of_the_library_trains(architecture: str, tmp_path: Path) -> None:
    """Longformer's global attention, BigBird's unused pooler, RoFormer's fixed positions."""
    folder = checkpoint(tmp_path, architecture)
    network, adapted, tokenizer = built(folder, "model.pooling=pooler")
    assert network.layout.name == "hf"
    fixed = {n: p.clone() for n, p in network.module.named_parameters() if not p.requires_grad}
    step(adapted, tokenizer)
    assert all(torch.equal(p, network.module.get_parameter(n)) for n, p in fixed.items())
    assert bool(fixed) == (architecture in ("BigBird", "RoFormer"))


@pytest.mark.parametrize("architecture", LIST)
def test_nothing_below_the_cut_of_freeze_trains(architecture: str, tmp_path: Path) -> None:
    """The hidden states at the cut stay the same after a step with a large learning rate."""
    folder = checkpoint(tmp_path, architecture)
    for layers in (0, 2):
        network, adapted, tokenizer = built(folder, "adapter=freeze", f"adapter.layers={layers}")
        blocks: Any = network.module.get_submodule(network.layers)
        before = first_input(blocks[layers], adapted.module, tokenizer)
        step(adapted, tokenizer)
        assert torch.equal(first_input(blocks[layers], adapted.module, tokenizer), before)


def first_input(block: nn.Module, module: nn.Module, tokenizer: Any) -> Tensor:
    """Return a copy of the hidden states that a block receives."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
        found.extend(x.clone() for x in (*args, *kwargs.values()) if isinstance(x, Tensor))

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    batched(module, tokenizer)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(
    "architecture",
    # Zamba2 has linear layers that its forward pass never calls: the audit refuses `auto` there.
    [
        n if n == "Albert" else pytest.param(n, marks=pytest.mark.slow)
        for n in SIZES
        if n != "Zamba2"
    ],
)
@pytest.mark.parametrize("adapter", ["lora", pytest.param("ia3", marks=pytest.mark.slow)])
def test_adapters_train(architecture: str, adapter: str, tmp_path: Path) -> None:
    _, adapted, tokenizer = built(checkpoint(tmp_path, architecture), f"adapter={adapter}")
    assert adapted.targets
    step(adapted, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NO_LIST)
def test_layers_that_cannot_be_frozen_are_refused(architecture: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, architecture)
    with pytest.raises(UserError, match="cannot be treated separately"):
        built(folder, "adapter=freeze", "adapter.layers=1")
    _, adapted, tokenizer = built(folder, "adapter=head")
    step(adapted, tokenizer)


# What the config of each family calls its dropout, from its documentation.
BERT_KEYS = ["attention_probs_dropout_prob", "hidden_dropout_prob"]
DROPOUT = {
    "Bert": BERT_KEYS,
    "Albert": [*BERT_KEYS, "classifier_dropout_prob"],
    "ModernBert": ["attention_dropout", "classifier_dropout", "embedding_dropout", "mlp_dropout"],
    "DistilBert": ["attention_dropout", "dropout", "seq_classif_dropout"],
    "Funnel": ["activation_dropout", "attention_dropout", "hidden_dropout"],
    "T5": ["classifier_dropout", "dropout_rate"],
    "Bart": ["activation_dropout", "attention_dropout", "dropout"],
    "GPT2": ["attn_pdrop", "embd_pdrop", "resid_pdrop"],
    "Qwen3": ["attention_dropout"],
    "Llama": ["attention_dropout"],
    "EuroBert": ["attention_dropout"],
    "Zamba2": ["attention_dropout"],
}


@pytest.mark.parametrize("architecture", DROPOUT)
def test_dropout_sets_every_key_of_its_family(architecture: str) -> None:
    config = getattr(transformers, f"{architecture}Config")()
    set_dropout(config, 0.3, "a checkpoint")
    assert {key: getattr(config, key) for key in DROPOUT[architecture]} == dict.fromkeys(
        DROPOUT[architecture], 0.3
    )


def test_an_architecture_without_dropout_takes_0_alone() -> None:
    config = transformers.RwkvConfig()
    set_dropout(config, 0.0, "a/rwkv")
    with pytest.raises(UserError, match=r"=0\.1 would have no effect, because 'a/rwkv' is"):
        set_dropout(config, 0.1, "a/rwkv")
    with pytest.raises(UserError, match=r"model\.dropout=1 is not a valid dropout probability"):
        check_dropout(1)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", DROPOUT)
def test_dropout_reaches_every_module(architecture: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, architecture)
    stored = AutoConfig.from_pretrained(folder)
    for dropout in (0.0, 0.3):
        network, _, _ = built(folder, f"model.dropout={dropout}")
        module: Any = network.module
        config = getattr(module, "encoder", module).config
        assert {key: getattr(config, key) for key in DROPOUT[architecture]} == dict.fromkeys(
            DROPOUT[architecture], dropout
        )
        drops = [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
        assert set(drops) <= {dropout}
    module = built(folder)[0].module
    config = getattr(module, "encoder", module).config
    for key in DROPOUT[architecture]:
        assert getattr(config, key) == getattr(stored, key)
