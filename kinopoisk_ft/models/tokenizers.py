"""Load tokenizers from the hub or a folder, or train them on the train split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

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
    "use model.name=<folder> (and model.tokenizer=<folder> if the tokenizer is in another folder), "
    "or model=bert_scratch or mamba_scratch, which do not need the hub"
)
WORDPIECE_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END = "<|endoftext|>"


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer by hub name or folder, and make it pad on the right.

    A tokenizer without a pad token pads with its end-of-text token.

    Raises:
        UserError: the tokenizer cannot be loaded, or cannot pad or tokenize Russian text.
    """
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
    _check_tokenizes(tokenizer, name)
    return tokenizer


def _check_tokenizes(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise UserError if a tokenizer gives no token for a Russian letter."""
    # The Rust library raises plain `Exception`.
    try:
        ids, reason = tokenizer("а", add_special_tokens=False)["input_ids"], "it gives no token"
    except Exception as error:
        ids, reason = [], str(error)
    if not ids:
        raise UserError(
            f"tokenizer '{name}' cannot encode the letter 'а': {reason}",
            where="model.tokenizer",
            fix="choose a tokenizer with Russian letters or an unknown token in its vocabulary",
        )


def check_folder(name: str, key: str) -> None:
    """Check a name that may be the path of a folder.

    Args:
        key: the config key with the name, for error messages.

    Raises:
        UserError: the folder is missing or unsafe, or `model.name` names an adapter's folder.
    """
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_local and not Path(name).is_dir():
        raise UserError(
            f"there is no folder '{name}'", where=key, fix="check the path, or use a hub name"
        )
    if Path(name).is_dir():
        check_contents(Path(name))
    if key == "model.name" and (Path(name) / ADAPTER).is_file():
        refuse_adapter(Path(name) / ADAPTER, name)


def check_ids(
    tokenizer: PreTrainedTokenizerBase, rows: int, name: str, every_id: bool = False
) -> None:
    """Raise UserError if a text can contain a token id for which the model has no embedding.

    Only the special tokens that the tokenizer adds to a text can occur. Others, such as Gemma's
    image token, are split like ordinary text.

    Args:
        rows: number of rows of the embedding matrix, one for each id from 0.
        every_id: include all special tokens, for pretraining, which draws random ids.
    """
    added = {*tokenizer("а")["input_ids"], tokenizer.pad_token_id, tokenizer.unk_token_id}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - added
    ids = {i: token for token, i in tokenizer.get_vocab().items() if every_id or i not in special}
    largest = max(ids)
    if largest >= rows:
        raise UserError(
            f"the tokenizer can produce the token id {largest} ('{ids[largest]}'), and the "
            f"embedding of '{name}' has only {rows} rows, for the ids 0 to {rows - 1}",
            where="model.tokenizer",
            fix="use the checkpoint's own tokenizer; if you added tokens, call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model again",
        )


def train_wordpiece(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer with BERT's special tokens on these texts.

    The same texts give the same tokenizer in every process.
    """
    vocab = _train_wordpiece_vocab(texts, vocab_size)
    tokenizer = _build_wordpiece(models.WordPiece(vocab, unk_token="[UNK]"))
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


def _build_wordpiece(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    # BERT's accent stripping would turn ё into е and й into и.
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _train_wordpiece_vocab(texts: Sequence[str], vocab_size: int) -> dict[str, int]:
    """Train a vocabulary that maps tokens to ids, with single letters first and in order.

    The trainer would number the letters inside words by the order of a hash table, which differs
    between processes and breaks ties between pairs of equal count. Passing the letters as special
    tokens fixes their order.
    """
    tokenizer = _build_wordpiece(models.WordPiece(unk_token="[UNK]"))
    letters = sorted(
        {letter for text in texts for letter in tokenizer.normalizer.normalize_str(text)}
    )
    inner = [f"##{letter}" for letter in letters if not letter.isspace()]
    # The vocabulary must contain each letter at the start of words and inside of words.
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(WORDPIECE_SPECIALS) + 2 * len(letters)),
        special_tokens=WORDPIECE_SPECIALS + inner,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab: dict[str, int] = tokenizer.get_vocab()
    return vocab


def train_bpe(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, as Mamba's checkpoints have, on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # With all 256 bytes in the alphabet, no text has unknown tokens.
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
