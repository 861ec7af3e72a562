"""Make recipes, adapters and networks for tests, by the names of the config groups."""

from __future__ import annotations

from typing import Any

import tiny
from composing import change_config
from hydra.utils import instantiate
from quick import quick

from kinopoisk_ft.models.network import Network

NAMES = ("Bad", "Good")
KINDS = ("bert", "pooled", "bert_scratch", "mamba", "mamba_scratch", "mamba2", "mamba2_scratch")
# `make test` runs a BERT and a Mamba, `make test-all` every kind.
TWO_QUICK_KINDS = quick(sorted(KINDS, key=lambda kind: kind not in ("bert", "mamba")), 2)
ADAPTERS = ("none", "freeze", "head", "bitfit", "lora", "dora", "rslora", "ia3")


def model_overrides(kind: str) -> list[str]:
    """Return the overrides that make a tiny network of a kind."""
    bert, mamba, mamba2 = tiny.bert(), tiny.mamba(), tiny.mamba2()
    small = ["model.d_model=16", "model.num_layers=3", "model.d_state=4", "model.vocab_size=300"]
    return {
        "bert": ["model=encoder", f"model.name={bert}", "model.pooling=pooler"],
        "pooled": ["model=encoder", f"model.name={tiny.bert(with_pooler=False)}"],
        "bert_scratch": ["model=bert_scratch", "model.hidden_size=16", "model.num_layers=3",
                         "model.max_positions=64", "model.vocab_size=120"],
        "mamba": ["model=mamba", f"model.name={mamba}", f"model.tokenizer={mamba}"],
        "mamba2": ["model=mamba2", f"model.name={mamba2}", f"model.tokenizer={mamba2}"],
        "mamba_scratch": ["model=mamba_scratch", *small],
        "mamba2_scratch": ["model=mamba2_scratch", *small, "model.head_dim=8"],
    }[kind]  # fmt: skip


def adapter_overrides(name: str) -> list[str]:
    """Return the overrides of an adapter for three layers."""
    return [f"adapter={name}"] + (["adapter.layers=2"] if name == "freeze" else [])


def make(kind: str, adapter: str = "none", *more: str) -> tuple[Any, Any, Network, Any]:
    """Make the recipe, adapter, network and tokenizer as a run does."""
    cfg = change_config([*model_overrides(kind), *adapter_overrides(adapter), *more])
    recipe, made = instantiate(cfg.model), instantiate(cfg.adapter)
    tokenizer = recipe.load_tokenizer(tiny.reviews(64)[0])
    return recipe, made, recipe.build(NAMES, tokenizer), tokenizer
