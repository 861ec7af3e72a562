"""Write checkpoints that are small enough to train in a test, once per session."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Mamba2Config,
    Mamba2Model,
    MambaConfig,
    MambaModel,
)

from kinopoisk_ft.models.tokenizers import train_bpe, train_wordpiece

GOOD = "отличный фильм прекрасная игра актёров интересный сюжет советую смотреть всем"
BAD = "ужасный фильм слабая игра актёров скучный сюжет никому не советую это смотреть"
BERT_TARGETS = {
    "lora": ["query", "value"],
    "ia3": ["key", "value", "output.dense"],
    "feedforward": ["output.dense"],
}
MAMBA_TARGETS = {
    "lora": ["in_proj", "x_proj", "dt_proj", "out_proj"],
    "ia3": ["in_proj", "out_proj"],
    "feedforward": ["out_proj"],
}


def reviews(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return texts of 3 to 30 words that depend on the label, and as many labels of each class."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for i in range(count):
        words = (GOOD if i % 2 else BAD).split()
        n = int(torch.randint(3, 31, (1,), generator=generator))
        picks = torch.randint(0, len(words), (n,), generator=generator).tolist()
        texts.append(" ".join(words[p] for p in picks))
        labels.append(i % 2)
    return texts, labels


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kinopoisk_ft_tiny_", ignore_cleanup_errors=True)


def _texts() -> Sequence[str]:
    return reviews(64)[0]


@functools.cache
def bert(with_pooler: bool = True, half: bool = False) -> str:
    """Return the folder of a BERT checkpoint with 3 layers."""
    folder = Path(_root().name) / f"bert_{with_pooler}_{half}"
    tokenizer = train_wordpiece(_texts(), 120)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = BertForSequenceClassification(config).bert
    if not with_pooler:
        encoder.pooler = None
    (encoder.half() if half else encoder).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@functools.cache
def mamba() -> str:
    """Return the folder of a Mamba checkpoint with 3 layers, in Hugging Face's layout."""
    return _mamba(MambaModel, MambaConfig)


@functools.cache
def mamba2() -> str:
    """Return the folder of a Mamba-2 checkpoint with 3 layers, 4 heads and 2 groups."""
    return _mamba(Mamba2Model, Mamba2Config, num_heads=4, head_dim=8, n_groups=2)


def _mamba(model: type, config: type, **sizes: int) -> str:
    folder = Path(_root().name) / model.__name__
    tokenizer = train_bpe(_texts(), 300)
    made = config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        state_size=4,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
