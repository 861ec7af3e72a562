"""Test the activations at the split point, and which models can be split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prefixed import apply
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MambaModel,
    ModernBertConfig,
    RobertaConfig,
)  # fmt: skip

from kinopoisk_ft.adapters.plain import Freeze, Head
from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.models.heads import HuggingFaceLayout, describe_encoder
from kinopoisk_ft.prefix_cache.split import SplitNetwork, find_split


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of cached activations."""
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hidden"


@pytest.mark.parametrize(("kind", "layer"), [("bert", 2), ("mamba", 2)])
def test_activations_equal_the_hidden_states_of_transformers(kind: str, layer: int) -> None:
    """The oracle is Hugging Face's hidden states of each review without padding."""
    network, _, cached, _ = apply(kind, "fp32", "freeze")
    reference = (MambaModel if kind == "mamba" else AutoModel).from_pretrained(network.base).eval()
    part = cached.parts["train"]
    for row in (0, 7, 39):
        ids = torch.tensor([part.input_ids[row]])
        with torch.no_grad():
            output = reference(ids, output_hidden_states=True)
        theirs = output.hidden_states[layer - (kind == "mamba")][0]
        ours = torch.tensor(np.array(part.activations[row]))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


SIZES = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 64, "vocab_size": 90,
         "pad_token_id": 0}  # fmt: skip
FAMILY = {
    "roberta": RobertaConfig(**SIZES),
    "distilbert": DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=32, vocab_size=90),
    "modernbert": ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2, bos_token_id=1,
                                   eos_token_id=2, classifier_pooling="mean", local_attention=4),
    "electra": ElectraConfig(**SIZES, embedding_size=8),
    "deberta": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
}  # fmt: skip


def split_classifier(
    name: str, adapter: Any
) -> tuple[SplitNetwork, nn.Module, dict[str, torch.Tensor]]:
    """Return a split classifier of Hugging Face, the classifier, and a batch of reviews."""
    torch.manual_seed(0)
    module = AutoModelForSequenceClassification.from_config(FAMILY[name])
    heads = ["classifier", "pre_classifier", "head"]
    network = describe_encoder(module, HuggingFaceLayout(), heads, pooling="pooler")
    generator = torch.Generator().manual_seed(0)
    lengths = (40, 25, 9, 3)
    ids = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in lengths]
    batch = pad(ids, 0)
    return find_split(network, adapter.apply(network).module, batch), module, batch


@pytest.mark.parametrize(
    ("name", "adapter", "expected"),
    [
        ("roberta", Freeze(layers=2, lr=1.0), (2, "")),
        ("roberta", Head(lr=1.0), (3, "cls")),
        ("distilbert", Freeze(layers=2, lr=1.0), (2, "")),
        ("distilbert", Head(lr=1.0), (3, "cls")),
        ("modernbert", Freeze(layers=1, lr=1.0), (1, "")),
        # Relative positions are frozen, too.
        ("deberta", Freeze(layers=2, lr=1.0), (2, "")),
        ("deberta", Head(lr=1.0), (3, "cls")),
        # ELECTRA projects its embeddings.
        ("electra", Freeze(layers=2, lr=1.0), (2, "")),
        ("electra", Head(lr=1.0), (3, "cls")),
        # The head of ModernBERT pools by the mean, after a norm.
        ("modernbert", Head(lr=1.0), (3, "")),
    ],
)
def test_encoders_of_the_family_give_the_same_logits_after_a_split(
    name: str, adapter: Any, expected: tuple[int, str]
) -> None:
    split, module, batch = split_classifier(name, adapter)
    assert (split.layer, split.pooling) == expected
    with torch.no_grad():
        activations = split.run_lower(**batch)
        found = split.run_upper(activations, **batch).logits
        torch.testing.assert_close(found, module(**batch).logits, atol=1e-6, rtol=1e-5)
        other = split.run_upper(activations.flip(0), **batch).logits
    assert not torch.allclose(found, other, atol=1e-4), "the logits must depend on the activations"
