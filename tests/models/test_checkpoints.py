"""Check the dropout settings in the config of each architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from architectures import checkpoint
from composing import compose_config
from hydra.utils import instantiate
from networks import NAMES
from torch import nn
from transformers import AutoConfig

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.checkpoints import check_dropout, set_dropout


def built(folder: str, *overrides: str) -> Any:
    """Return the module of a classifier."""
    recipe = instantiate(
        compose_config(["model=encoder", f"model.name={folder}", *overrides]).model
    )
    return recipe.build(NAMES, recipe.load_tokenizer([])).module


# The names of dropout settings in each family's config, from its documentation.
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
        module = built(folder, f"model.dropout={dropout}")
        config = getattr(module, "encoder", module).config
        assert {key: getattr(config, key) for key in DROPOUT[architecture]} == dict.fromkeys(
            DROPOUT[architecture], dropout
        )
        drops = [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
        assert set(drops) <= {dropout}
    module = built(folder)
    config = getattr(module, "encoder", module).config
    for key in DROPOUT[architecture]:
        assert getattr(config, key) == getattr(stored, key)
