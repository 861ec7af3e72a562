"""Where a network is cut: the states there, and the models that can or cannot be cut."""

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
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.heads import HuggingFaceLayout, describe_encoder
from kinopoisk_ft.prefix_cache.split import FrozenPrefix, Seam, find_prefix
from kinopoisk_ft.training.batching import pad


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached states, empty."""
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hidden"


@pytest.mark.parametrize(("kind", "layer"), [("bert", 2), ("mamba", 2)])
def test_states_are_those_of_transformers(kind: str, layer: int) -> None:
    """Hugging Face's own hidden states, review by review, without padding."""
    network, _, prefixed, _ = apply(kind, "fp32", "freeze")
    reference = (MambaModel if kind == "mamba" else AutoModel).from_pretrained(network.base).eval()
    part = prefixed.parts["train"]
    assert part.hidden is not None
    for row in (0, 7, 39):
        ids = torch.tensor([part.input_ids[row]])
        with torch.no_grad():
            output = reference(ids, output_hidden_states=True)
        theirs = output.hidden_states[layer - (kind == "mamba")][0]
        ours = torch.tensor(np.array(part.hidden[row]))
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


def cut(name: str, adapter: Any) -> tuple[FrozenPrefix, nn.Module, dict[str, torch.Tensor]]:
    """Return Hugging Face's classifier of a family, cut, with a batch of reviews."""
    torch.manual_seed(0)
    config = FAMILY[name]
    module = AutoModelForSequenceClassification.from_config(config)
    heads = ["classifier", "pre_classifier", "head"]
    network = describe_encoder(
        module, config, HuggingFaceLayout(), heads, set(), None, None, "pooler"
    )
    generator = torch.Generator().manual_seed(0)
    lengths = (40, 25, 9, 3)
    ids = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in lengths]
    batch = pad(ids, 0)
    return find_prefix(network, adapter.apply(network).module, batch), module, batch


@pytest.mark.parametrize(
    ("name", "adapter", "seam"),
    [
        ("roberta", Freeze(layers=2, lr=1.0), Seam(2)),
        ("roberta", Head(lr=1.0), Seam(3, pooling="cls")),
        ("distilbert", Freeze(layers=2, lr=1.0), Seam(2)),
        ("distilbert", Head(lr=1.0), Seam(3, pooling="cls")),
        ("modernbert", Freeze(layers=1, lr=1.0), Seam(1)),
        ("deberta", Freeze(layers=2, lr=1.0), Seam(2)),  # relative positions are frozen, too
        ("modernbert", Head(lr=1.0), Seam(3)),  # its head pools by the mean, behind a norm
    ],
)
def test_encoders_of_the_family_start_where_they_are_cut(
    name: str, adapter: Any, seam: Seam
) -> None:
    prefix, module, batch = cut(name, adapter)
    assert prefix.seam == seam
    with torch.no_grad():
        states = prefix.states(**batch)
        found = prefix.resume(states, batch["attention_mask"]).logits
        torch.testing.assert_close(found, module(**batch).logits, atol=1e-6, rtol=1e-5)
        other = prefix.resume(states.flip(0), batch["attention_mask"]).logits
    assert not torch.allclose(found, other, atol=1e-4), "the logits come from the states"


@pytest.mark.parametrize(
    ("name", "adapter", "told"),
    [
        ("electra", Head(lr=1.0), "cannot be started at layer 3"),
        ("electra", Freeze(layers=2, lr=1.0), "cannot be started at layer 2"),
        ("deberta", Head(lr=1.0), "cannot be started at layer 3"),
    ],
)
def test_encoders_that_cannot_be_cut_are_refused(name: str, adapter: Any, told: str) -> None:
    """ELECTRA small projects its embeddings; DeBERTa cannot run without layers."""
    with pytest.raises(UserError, match=told):
        cut(name, adapter)
