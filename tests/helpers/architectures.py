"""Write tiny random checkpoints of many architectures, with a small tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from kinopoisk_ft.models.tokenizers import train_wordpiece

WIDE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
BERT: dict[str, Any] = {**WIDE, "max_position_embeddings": 64}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 1, "head_dim": 8}
BART: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2}
MAMBA: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "state_size": 4}
# The prefix of the class names in transformers, and the sizes.
SIZES: dict[str, dict[str, Any]] = {
    "Albert": {**BERT, "embedding_size": 8},
    "Bert": BERT,
    "XLMRoberta": {**BERT, "pad_token_id": 0},
    "Roberta": {**BERT, "pad_token_id": 0},
    "Electra": {**BERT, "embedding_size": 8},
    "Deberta": {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2": {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
                  "position_biased_input": False, "share_att_key": True, "position_buckets": 8,
                  "norm_rel_ebd": "layer_norm"},
    "MPNet": {**BERT, "pad_token_id": 1},
    "Longformer": {**BERT, "attention_window": [4, 4, 4], "pad_token_id": 0},
    "BigBird": {**BERT, "max_position_embeddings": 64, "block_size": 4, "num_random_blocks": 1},
    "RoFormer": BERT,
    "Funnel": {"block_sizes": [1, 2], "num_decoder_layers": 1, "d_model": 16, "n_head": 2,
               "d_head": 8, "d_inner": 32},
    "DistilBert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32,
                   "max_position_embeddings": 64, "sinusoidal_pos_embds": True},
    "ModernBert": {**BERT, "local_attention": 8},
    "ModernBertForMaskedLM": {**BERT, "local_attention": 8},
    "NomicBert": BERT,
    "Gte": BERT,
    "EuroBert": LLAMA,
    "T5": T5,
    "MT5": T5,
    "UMT5": T5,
    "Bart": BART,
    "MBart": BART,
    "GPT2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64},
    "Llama": LLAMA,
    "Qwen3": LLAMA,
    "Gemma3Text": {**LLAMA, "sliding_window": 8},
    "Zamba2": {**LLAMA, "num_hidden_layers": 4, "attention_hidden_size": 32,
               "attention_head_dim": 16, "mamba_d_state": 4, "mamba_headdim": 8, "chunk_size": 8,
               "n_mamba_heads": 4, "mamba_ngroups": 1, "num_mem_blocks": 1, "adapter_rank": 4,
               "layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
               "use_shared_attention_adapter": False},
    "Mamba": MAMBA,
    "FalconMamba": MAMBA,
    "Mamba2": {**MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 2},
}  # fmt: skip
# Architectures with their own model config, which model=encoder refuses.
OUR_OWN = ("FalconMamba", "Mamba", "Mamba2")
# MPNet's positions always start after id 1, regardless of the config.
PADS = {"MPNet": "[UNK]"}


def tokenizer(architecture: str = "Bert") -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer whose padding id suits the architecture."""
    made = train_wordpiece(tiny.reviews(64)[0], 120)
    made.pad_token = PADS.get(architecture, made.pad_token)
    return made


def checkpoint(folder: Path, architecture: str, **config: Any) -> str:
    """Write a random checkpoint with three or four layers, and its tokenizer.

    `config` contains settings that differ from `SIZES`.
    """
    made = tokenizer(architecture)
    known: dict[str, Any] = {
        "vocab_size": len(made), "pad_token_id": made.pad_token_id, "bos_token_id": 2,
        "eos_token_id": 3, "sep_token_id": 3, "cls_token_id": 2,
    }  # fmt: skip
    family = architecture.removesuffix("ForMaskedLM")
    made_config = getattr(transformers, f"{family}Config")(
        **{**known, **SIZES[architecture], **config}
    )
    whole = architecture != family
    kind = getattr(transformers, architecture if whole else f"{family}Model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(made_config).save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)
