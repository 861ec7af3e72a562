"""Define the shapes of known encoders, and write checkpoints with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

Shape = dict[str, int]
TINY2 = {"hidden_size": 312, "num_hidden_layers": 3, "num_attention_heads": 12,
         "intermediate_size": 600}  # fmt: skip
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 1536}  # fmt: skip
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072}  # fmt: skip
# DeepPavlov/rubert-base-cased.
RUBERT = {**BASE, "vocab_size": 119547}
TINY = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 128}  # fmt: skip


def random_bert(shape: Shape, tokenizer: Path, folder: Path, max_length: int) -> Path:
    """Write a BERT with random weights and another model's tokenizer; return its folder."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = BertConfig(
        **{"vocab_size": len(words), **shape}, max_position_embeddings=max(512, max_length),
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    target = folder / "random-bert"
    BertForSequenceClassification(config).save_pretrained(target)
    words.save_pretrained(target)
    return target
