"""Tokenizers: loaded from a hub or folder, or trained on the train split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.untrusted import ADAPTER, check_contents, refuse_adapter

log = logging.getLogger(__name__)

HUB_FIX = (
    "give model.name=<folder> (and model.tokenizer=<folder> where it lies elsewhere), "
    "or model=bert_scratch or mamba_scratch, which need no hub"
)
WORDPIECE_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END = "<|endoftext|>"


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer by hub name or folder; pads right, with the end mark if it has no pad."""
    check_folder(name, "model.tokenizer")
    with access_hub("tokenizer", name, HUB_FIX):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"tokenizer '{name}' has neither a pad token nor an end-of-text token",
                where="model.tokenizer",
                fix="choose another tokenizer, or add a pad_token to its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    _check_reads(tokenizer, name)
    return tokenizer


class Checkpoint(Protocol):
    """Where a model and its tokenizer come from."""

    name: str
    revision: str | None
    tokenizer: str
    tokenizer_revision: str | None


def checkpoint_tokenizer(source: Checkpoint) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; from the model's own repository, at the model's revision."""
    own = source.tokenizer == source.name
    return load_tokenizer(source.tokenizer, source.revision if own else source.tokenizer_revision)


def _check_reads(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise UserError for a tokenizer that makes nothing of a letter, not even an unknown one."""
    try:
        found, reason = tokenizer("а", add_special_tokens=False)["input_ids"], "no token"
    except Exception as error:  # the Rust library's own has no other name
        found, reason = [], str(error)
    if not found:
        raise UserError(
            f"tokenizer '{name}' cannot read the letter 'а': {reason}",
            where="model.tokenizer",
            fix="choose a tokenizer with Russian letters or an unknown token in its vocabulary",
        )


def check_folder(name: str, key: str) -> None:
    """Raise UserError for the path of a missing folder, an unsafe folder, or an adapter's folder.

    An adapter is refused as `model.name` only.
    """
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_local and not Path(name).is_dir():
        raise UserError(
            f"there is no folder '{name}'", where=key, fix="check the path, or give a hub name"
        )
    if Path(name).is_dir():
        check_contents(Path(name))
    if key == "model.name" and (Path(name) / ADAPTER).is_file():
        refuse_adapter(Path(name) / ADAPTER, name)


def check_ids(
    tokenizer: PreTrainedTokenizerBase, rows: int, name: str, every_id: bool = False
) -> None:
    """Raise UserError if a text can give a token id for which the model has no embedding.

    Special tokens count if the tokenizer adds them to a text: others, such as Gemma's image token,
    are split like any text.

    Args:
        rows: of the model's embedding matrix, one for each id from 0.
        every_id: count all special tokens, for pretraining, which draws random ids.
    """
    added = {*tokenizer("а")["input_ids"], tokenizer.pad_token_id, tokenizer.unk_token_id}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - added
    ids = {i: token for token, i in tokenizer.get_vocab().items() if every_id or i not in special}
    largest = max(ids)
    if largest >= rows:
        raise UserError(
            f"the tokenizer can give the token id {largest} ('{ids[largest]}'), and the "
            f"embedding of '{name}' has {rows} rows, for the ids 0 to {rows - 1}",
            where="model.tokenizer",
            fix="use the checkpoint's own tokenizer; for tokens that were added, call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model again",
        )


def train_wordpiece(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer with BERT's special tokens on these texts.

    The same texts give the same tokenizer in every process.
    """
    vocab = _wordpiece_vocab(texts, vocab_size)
    tokenizer = _wordpiece(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _wordpiece(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    # ё and й stay letters of their own: BERT's accent stripping would make е and и of them.
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _wordpiece_vocab(texts: Sequence[str], vocab_size: int) -> dict[str, int]:
    """Return token → id; single letters go first and in order.

    The trainer numbers the letters inside words by the order of a hash table, which differs from
    process to process and decides between pairs of equal counts: so they are given in advance.
    """
    tokenizer = _wordpiece(models.WordPiece(unk_token="[UNK]"))
    letters = sorted(
        {letter for text in texts for letter in tokenizer.normalizer.normalize_str(text)}
    )
    inner = [f"##{letter}" for letter in letters if not letter.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(WORDPIECE_SPECIALS) + 2 * len(letters)),
        special_tokens=WORDPIECE_SPECIALS + inner,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab: dict[str, int] = tokenizer.get_vocab()
    return vocab


def train_bpe(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, the kind of Mamba's checkpoints, on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=END, bos_token=END, eos_token=END, pad_token=END
    )
