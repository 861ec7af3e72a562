"""Reviews as token ids, made once: the cache is keyed by what determines the bytes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from kinopoisk_ft.caches import get_cache_dir
from kinopoisk_ft.data.preprocessing import Preprocessing, Seen, ends, share_cut
from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

VERSION = "3"  # of the cached layout; a change makes new files
# Characters in one call of the tokenizer, whose encoding takes some 300 bytes for each.
AT_ONCE = 2**20


def groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in order, as many together as have `AT_ONCE` characters, or one that has more."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > AT_ONCE:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, without padding, and how much of the texts they stand for."""

    input_ids: list[list[int]]
    seen: Seen
    truncated: np.ndarray  # (N,), the share of each text's characters that was cut off


def tokenize(texts: Sequence[str], tokenizer: Any, how: Preprocessing) -> Tokens:
    """Return token ids of clean texts, of each the part that `how` leaves."""
    key = _key(texts, tokenizer, how)
    file = get_cache_dir() / "tokens" / f"{key}.arrow"
    table = _kept(file)
    if table is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict({"text": list(texts)}).map(
            lambda batch: encode(batch["text"], tokenizer, how),
            batched=True,
            remove_columns=["text"],
            cache_file_name=str(file),
            new_fingerprint=key,
        )
    columns = {f.name: table.data.column(f.name).to_numpy() for f in fields(Seen)}
    return Tokens(
        _lists(table.data.column("input_ids")),
        Seen(**{name: int(column.sum()) for name, column in columns.items()}),
        share_cut(columns["characters"], columns["characters_seen"]),
    )


def _kept(file: Path) -> Any:
    """Return what an earlier run left, None where there is nothing whole."""
    if not file.exists():
        return None
    try:
        return datasets.Dataset.from_file(str(file))
    except (OSError, ValueError) as error:  # Arrow's own errors are kinds of these
        log.warning("%s is damaged, and the reviews are tokenized again: %s", file, error)
        file.unlink(missing_ok=True)
        return None


def _lists(column: Any) -> list[list[int]]:
    """Return the rows of an Arrow column of lists."""
    rows: list[list[int]] = []
    for chunk in column.chunks:
        ids, bounds = chunk.values.to_numpy().tolist(), chunk.offsets.to_numpy().tolist()
        rows += [ids[start:end] for start, end in pairwise(bounds)]
    return rows


def encode(texts: Sequence[str], tokenizer: Any, how: Preprocessing) -> dict[str, list[Any]]:
    """Return the columns input_ids and those of Seen, one row for each clean text."""
    cut = [how.cut(text) for text in texts]
    shortened = [text for text, part in zip(texts, cut, strict=True) if part != text]
    counts = iter(_count(shortened, tokenizer))
    columns: dict[str, list[Any]] = {"input_ids": [], **{f.name: [] for f in fields(Seen)}}
    special = sum(_special(tokenizer))
    rows = _read(cut, tokenizer, how)
    for text, part, (ids, seen, total) in zip(texts, cut, rows, strict=True):
        columns["input_ids"].append(ids)
        columns["characters"].append(len(text))
        columns["characters_seen"].append(seen)
        columns["tokens"].append(total if part == text else next(counts))
        columns["tokens_seen"].append(len(ids) - special)
    return columns


def read(texts: Sequence[str], tokenizer: Any, how: Preprocessing) -> list[list[int]]:
    """Return the token ids of clean texts alone."""
    return [ids for ids, _, _ in _read([how.cut(text) for text in texts], tokenizer, how)]


def _read(
    texts: Sequence[str], tokenizer: Any, how: Preprocessing
) -> list[tuple[list[int], int, int]]:
    """Return of each text its ids, the characters that they cover, and the tokens of all of it.

    Special tokens are not counted.
    """
    left, right = _special(tokenizer)
    room = how.max_length - left - right
    if room < 1:
        raise UserError(
            f"data.max_length={how.max_length} leaves no room beside {left + right} special tokens",
            where="data.max_length",
            fix=f"give {left + right + 1} or more",
        )
    head, tail = ends(room, how.truncation)
    rows = []
    for group in groups(texts):
        found = _encode_whole(group, tokenizer)
        for i, (text, ids) in enumerate(zip(group, found["input_ids"], strict=True)):
            seen, end = len(text), len(ids) - right
            if end - left > room:
                seen = found.token_to_chars(i, left + head - 1).end if head else 0
                seen += len(text) - found.token_to_chars(i, end - tail).start if tail else 0
                ids = ids[: left + head] + ids[end - tail :]
            rows.append((ids, seen, end - left))
    return rows


def _count(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Return the number of tokens of each text, without special ones."""
    special = sum(_special(tokenizer))
    encoded = (_encode_whole(group, tokenizer)["input_ids"] for group in groups(texts))
    return [len(ids) - special for ids in chain.from_iterable(encoded)]


def _encode_whole(texts: Sequence[str], tokenizer: Any) -> Any:
    return tokenizer(
        list(texts),
        split_special_tokens=True,  # "[SEP]" in a review is text: nobody writes marks but we
        truncation=False,
        padding=False,
        verbose=False,  # of texts beyond the model's length, which are cut afterwards
        return_attention_mask=False,
        return_token_type_ids=False,
    )


def _special(tokenizer: Any) -> tuple[int, int]:
    """Return how many special tokens the tokenizer puts before and after a text."""
    mask = tokenizer("а", return_special_tokens_mask=True)["special_tokens_mask"]
    left = mask.index(0)
    return left, mask[::-1].index(0)


def log_example(input_ids: Sequence[int], tokenizer: Any) -> None:
    """Log one review as the model reads it."""
    text = " ".join(tokenizer.decode(list(input_ids)).split())
    log.info("a review as the model reads it, %d tokens: %.300s", len(input_ids), text)


def check_length(max_length: int, positions: int | None) -> None:
    """Raise UserError for more tokens than the model has positions."""
    if max_length < 1 or (positions is not None and max_length > positions):
        raise UserError(
            f"data.max_length={max_length} is not within the model's {positions} positions",
            where="data.max_length",
            fix=f"give a number from 1 to {positions}" if positions else "give a number above 0",
        )


def _key(texts: Sequence[str], tokenizer: Any, how: Preprocessing) -> str:
    limits = (how.max_length, how.truncation, how.max_characters)
    digest = hashlib.sha256(f"{VERSION} {limits} ".encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for text in texts:
        raw = text.encode()
        digest.update(f"{len(raw)} ".encode())
        digest.update(raw)
    return digest.hexdigest()[:32]


def ids_digest(input_ids: Sequence[Sequence[int]]) -> str:
    """Return a digest of token ids and of where each review ends."""
    lengths = np.fromiter(map(len, input_ids), dtype=np.int64, count=len(input_ids))
    ids = np.fromiter(chain.from_iterable(input_ids), dtype=np.int64, count=int(lengths.sum()))
    return hashlib.sha256(lengths.tobytes() + ids.tobytes()).hexdigest()[:32]
