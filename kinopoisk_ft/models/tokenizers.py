"""Load pretrained tokenizers, and train tokenizers on the train split."""

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
    "or use model=bert_scratch or model=mamba_scratch with data=demo, which do not need the hub"
)
WORDPIECE_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END = "<|endoftext|>"


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the Hub or a local folder, and set padding to the right.

    If the tokenizer has no pad_token, its eos_token becomes the pad_token.

    Raises:
        UserError: the tokenizer cannot be loaded, cannot pad, or cannot encode every text.
    """
    check_folder(name, "model.tokenizer")
    with access_hub("tokenizer", name, HUB_FIX):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"tokenizer '{name}' has neither a pad_token nor an eos_token",
                where="model.tokenizer",
                fix="choose another tokenizer, or add a pad_token to its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    # Mamba and the pooling of windows require padding on the right.
    tokenizer.padding_side = "right"
    _check_tokenizes(tokenizer, name)
    return tokenizer


def _check_tokenizes(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    # The Rust library `tokenizers` raises plain `Exception`, not a subclass.
    try:
        ids, reason = tokenizer("а", add_special_tokens=False)["input_ids"], "it returns no token"
    except Exception as error:
        ids, reason = [], str(error)
    if not ids:
        raise UserError(
            f"tokenizer '{name}' cannot encode the Russian letter 'а': {reason}",
            where="model.tokenizer",
            fix="choose a tokenizer whose vocabulary has Russian letters or an unk_token",
        )
    try:
        # A rune, which most vocabularies lack. A damaged vocabulary may also lack the unk_token.
        tokenizer("ᚠ")
    except Exception as error:
        raise UserError(
            f"tokenizer '{name}' cannot encode an unknown character: {error}",
            where="model.tokenizer",
            fix="choose a tokenizer whose vocabulary has an unk_token",
        ) from error


def check_folder(name: str, key: str) -> None:
    """Check `name` if it is a local folder; accept any Hub id.

    Args:
        key: config key that contains `name`, for error messages.

    Raises:
        UserError: the folder is missing or unsafe, or it contains only an adapter and `key` is
            `model.name`.
    """
    # The id of a repository on the Hub has at most one slash, and no backslash.
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_local and not Path(name).is_dir():
        raise UserError(
            f"the folder '{name}' does not exist",
            where=key,
            fix="correct the path, or use the name of a repository on the Hugging Face Hub",
        )
    if Path(name).is_dir():
        check_contents(Path(name))
    if key == "model.name" and (Path(name) / ADAPTER).is_file():
        refuse_adapter(Path(name) / ADAPTER, name)


def check_ids(
    tokenizer: PreTrainedTokenizerBase, rows: int, name: str, every_id: bool = False
) -> None:
    """Raise UserError if the tokenizer can return an id without an embedding.

    Special tokens that never result from a text, such as Gemma's image token, are checked only if
    `every_id` is True.

    Args:
        rows: number of rows of the embedding matrix, one for each id from 0.
        every_id: True for pretraining, because masked language modeling inserts random ids.
    """
    # These special tokens occur in every batch, or replace unknown text, so check them, too.
    added = {*tokenizer("а")["input_ids"], tokenizer.pad_token_id, tokenizer.unk_token_id}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - added
    ids = {i: token for token, i in tokenizer.get_vocab().items() if every_id or i not in special}
    largest = max(ids)
    if largest >= rows:
        raise UserError(
            f"the tokenizer can return the token id {largest} ('{ids[largest]}'), but '{name}' has "
            f"embeddings only for the ids 0 to {rows - 1}",
            where="model.tokenizer",
            fix="use the checkpoint's own tokenizer; if you added tokens, call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model again",
        )


def train_wordpiece(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lowercase WordPiece tokenizer with BERT's special tokens.

    The same texts give the same tokenizer in every process.
    """
    vocab = _train_wordpiece_vocab(texts, vocab_size)
    # In the trained tokenizer, letters are special tokens, so build a new one for its vocabulary.
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
    tokenizer = _build_wordpiece(models.WordPiece(unk_token="[UNK]"))
    # If two pairs are equally frequent, the ids decide which pair is merged first. By default, the
    # ids of the letters inside words (##а) differ between processes. Special tokens get ids in the
    # given order, so these letters are passed as special tokens.
    letters = sorted(
        {letter for text in texts for letter in tokenizer.normalizer.normalize_str(text)}
    )
    inner = [f"##{letter}" for letter in letters if not letter.isspace()]
    # The vocabulary must contain each letter twice: for the start and for the inside of words.
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(WORDPIECE_SPECIALS) + 2 * len(letters)),
        special_tokens=WORDPIECE_SPECIALS + inner,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab: dict[str, int] = tokenizer.get_vocab()
    return vocab


def train_bpe(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which is the kind of tokenizer in Mamba checkpoints."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # With all 256 bytes in the alphabet, there are no unknown tokens.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Like the tokenizer of GPT-NeoX, which Mamba uses, it has one token for all special uses.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=END, bos_token=END, eos_token=END, pad_token=END
    )
