"""Check tokenizers without some special tokens: usable ones work, others give a UserError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import change
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DebertaV2Config, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.tokens import encode_ids
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.tokenizers import load_tokenizer, train_bpe, train_wordpiece


def save(folder: Path, model: models.Model, **special: str) -> str:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return str(folder)


def test_empty_vocabularies_are_refused(tmp_path: Path) -> None:
    empty = save(tmp_path / "a", models.WordPiece({}, unk_token="[UNK]"), pad_token="[PAD]")
    latin = save(tmp_path / "b", models.BPE({"a": 0}, []), pad_token="[PAD]")
    for folder in (empty, latin):
        with pytest.raises(UserError, match="cannot encode the Russian letter 'а'"):
            load_tokenizer(folder)
    lost = save(tmp_path / "c", models.WordPiece({"а": 0}, unk_token="[UNK]"), pad_token="[PAD]")
    with pytest.raises(UserError, match="an unknown character: WordPiece error: Missing"):
        load_tokenizer(lost)


def test_a_tokenizer_that_knows_nothing_else_still_reads(tmp_path: Path) -> None:
    vocab = {"[PAD]": 0, "[UNK]": 1}
    folder = save(tmp_path, models.WordPiece(vocab, unk_token="[UNK]"), pad_token="[PAD]")
    assert encode_ids(["да нет", "да"], load_tokenizer(folder), Preprocessing(4)) == [[1, 1], [1]]


def test_no_pad_token(tmp_path: Path) -> None:
    vocab = {"[UNK]": 0, "</s>": 1}
    model = models.WordPiece(vocab, unk_token="[UNK]")
    with pytest.raises(UserError, match="neither a pad_token nor an eos_token"):
        load_tokenizer(save(tmp_path / "a", model))
    tokenizer = load_tokenizer(save(tmp_path / "b", model, eos_token="</s>"))
    assert tokenizer.pad_token_id == 1
    # The name of the padding token in a review is text, so the last token is not padding.
    assert encode_ids(["да </s>"], tokenizer, Preprocessing(8))[0][-1] != 1


# Changes of a tokenizer's JSON for which transformers raises other exceptions than ValueError.
ODD = {
    "a missing part": ("tokenizer.json", {"added_tokens": None}),
    "a part of another type": ("tokenizer.json", {"added_tokens": [None]}),
    "a class that is no name": ("tokenizer_config.json", {"tokenizer_class": {}}),
    "a token that is a number": ("tokenizer_config.json", {"mask_token": 0.5}),
    "the name of a method": ("tokenizer_config.json", {"encode": 1}),
}


@pytest.mark.parametrize("name", ODD)
def test_files_with_other_contents_are_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, models.WordPiece({"[UNK]": 0, "а": 1}, unk_token="[UNK]"),
                  pad_token="[UNK]")  # fmt: skip
    file, values = ODD[name]
    change(tmp_path / file, **values)
    with pytest.raises(UserError, match=r"tokenizer '.*' cannot be loaded") as raised:
        load_tokenizer(folder)
    assert raised.value.fix


def test_a_symlink_to_itself_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, models.WordPiece({"[UNK]": 0, "а": 1}, unk_token="[UNK]"),
                  pad_token="[UNK]")  # fmt: skip
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(UserError):
        load_tokenizer(folder)


def test_no_text_to_train_on() -> None:
    """The vocabulary has only special tokens or bytes, so texts become unknown tokens or bytes."""
    for train in (train_wordpiece, train_bpe):
        tokenizer = train(["", " "], 300)
        (ids,) = encode_ids(["кино"], tokenizer, Preprocessing(64))
        assert ids
        assert tokenizer.pad_token_id is not None


def test_a_sentencepiece_model_without_tokenizer_json(tmp_path: Path) -> None:
    """The checkpoint of mDeBERTa has only such a file."""
    model = import_protobuf().ModelProto()
    pieces = {"[PAD]": 3, "[CLS]": 3, "[SEP]": 3, "[UNK]": 2, "▁": 1, "▁фильм": 1, "а": 1}
    for score, (piece, kind) in enumerate(pieces.items()):
        model.pieces.add(piece=piece, score=-score, type=kind)
    model.trainer_spec.unk_id = 3
    model.normalizer_spec.name = "identity"
    (tmp_path / "spm.model").write_bytes(model.SerializeToString())
    DebertaV2Config(vocab_size=len(pieces)).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert encode_ids(["фильм а"], tokenizer, Preprocessing(8)) == [[1, 5, 4, 6, 2]]
