"""Tokenize reviews, and cache the token ids."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import numpy as np

from kinopoisk_ft.data.preprocessing import (
    Preprocessing,
    TextCoverage,
    compute_truncated_share,
    find_omitted,
)
from kinopoisk_ft.data.windows import Windows
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import compute_sha256, get_cache_dir

log = logging.getLogger(__name__)

# Version of the cached columns, which is part of the cache key.
# Increase it if `encode` returns other values for the same texts.
VERSION = "3"
# Maximum number of characters per tokenizer call, which needs about 300 bytes per character.
MAX_BATCH_CHARACTERS = 2**20


def batch_texts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield batches of at most MAX_BATCH_CHARACTERS characters, in the order of the texts.

    A text of more than MAX_BATCH_CHARACTERS characters is a batch by itself.
    """
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > MAX_BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


@dataclass(frozen=True)
class Tokens:
    """The token ids of N texts, without padding and not yet divided into windows.

    Args:
        seen: numbers of characters and tokens, before and after truncation, in all texts together.
        truncated: fraction of characters that truncation removed from each text, (N,).
    """

    input_ids: list[list[int]]
    seen: TextCoverage
    truncated: np.ndarray


def tokenize(texts: Sequence[str], tokenizer: Any, preprocessing: Preprocessing) -> Tokens:
    """Truncate and tokenize cleaned texts.

    The result is cached on disk. A later call with the same arguments reads the cached result.
    """
    key = _compute_cache_key(texts, tokenizer, preprocessing)
    file = get_cache_dir() / "tokens" / f"{key}.arrow"
    table = _load_cached(file)
    if table is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict({"text": list(texts)}).map(
            lambda batch: encode(batch["text"], tokenizer, preprocessing),
            batched=True,
            remove_columns=["text"],
            # `map` renames a temporary file at the end, so this file is always complete.
            cache_file_name=str(file),
            # `map` would read an existing file without a check.
            load_from_cache_file=False,
            # Without this argument, `map` would hash the tokenizer to compute a fingerprint.
            new_fingerprint=key,
        )
        # The name is unique, because another process may write the same digest at the same time.
        part = file.with_suffix(f".{uuid4().hex}.part")
        part.write_text(compute_sha256(file), "utf-8")
        part.replace(file.with_suffix(".sha256"))
    columns = {f.name: table.data.column(f.name).to_numpy() for f in fields(TextCoverage)}
    return Tokens(
        _to_lists(table.data.column("input_ids")),
        TextCoverage(**{name: int(column.sum()) for name, column in columns.items()}),
        compute_truncated_share(columns["characters"], columns["characters_seen"]),
    )


def _load_cached(file: Path) -> Any:
    digest = file.with_suffix(".sha256")
    # The digest is written last. Earlier versions did not write one.
    if not (file.exists() and digest.exists()):
        return None
    # The exceptions of pyarrow are subclasses of these two.
    try:
        if compute_sha256(file) != digest.read_text("utf-8"):
            raise ValueError("its SHA-256 digest does not match")
        return datasets.Dataset.from_file(str(file))
    except (OSError, ValueError) as error:
        log.warning("%s is damaged, so the reviews are tokenized again: %s", file, error)
        file.unlink(missing_ok=True)
        return None


def _to_lists(column: Any) -> list[list[int]]:
    rows: list[list[int]] = []
    for chunk in column.chunks:
        # The offsets count from the start of `values`, even if the chunk is a slice.
        ids, bounds = chunk.values.to_numpy().tolist(), chunk.offsets.to_numpy().tolist()
        rows += [ids[start:end] for start, end in pairwise(bounds)]
    return rows


def encode(
    texts: Sequence[str], tokenizer: Any, preprocessing: Preprocessing
) -> dict[str, list[Any]]:
    """Truncate and tokenize cleaned texts.

    Returns:
        {name: one value per text} for `input_ids` and for each field of `TextCoverage`.
    """
    cut, prefix = preprocessing.texts(texts), preprocessing.text_prefix
    # Shortened texts are also tokenized as a whole, to count their tokens before truncation.
    shortened = [text for text, part in zip(texts, cut, strict=True) if part != text]
    encodings = (_encode_whole(batch, tokenizer, prefix) for batch in batch_texts(shortened))
    whole = chain.from_iterable(encoding["input_ids"] for encoding in encodings)
    columns: dict[str, list[Any]] = {"input_ids": [], **{f.name: [] for f in fields(TextCoverage)}}
    added = sum(count_added_tokens(tokenizer, prefix))
    rows = _truncate_and_encode(cut, tokenizer, preprocessing)
    for text, part, (ids, seen, count) in zip(texts, cut, rows, strict=True):
        columns["input_ids"].append(ids)
        columns["characters"].append(len(text))
        columns["characters_seen"].append(seen)
        # `whole` has the token ids of the shortened texts, in the same order.
        columns["tokens"].append(count if part == text else len(next(whole)) - added)
        columns["tokens_seen"].append(len(ids) - added)
    return columns


def encode_ids(
    texts: Sequence[str], tokenizer: Any, preprocessing: Preprocessing
) -> list[list[int]]:
    """Truncate and tokenize cleaned texts, and return only the token ids.

    The ids of long texts are not yet divided into windows.
    """
    rows = _truncate_and_encode(preprocessing.texts(texts), tokenizer, preprocessing)
    return [ids for ids, _, _ in rows]


def _truncate_and_encode(
    texts: Sequence[str], tokenizer: Any, preprocessing: Preprocessing
) -> list[tuple[list[int], int, int]]:
    """Encode texts, and truncate them to `max_length` tokens.

    Returns:
        For each text: the token ids, the number of characters that these ids cover, and the number
        of tokens before truncation. The ids include the special tokens and the prefix; the two
        numbers do not.
    """
    prefix = preprocessing.text_prefix
    left, right = count_added_tokens(tokenizer, prefix)
    find_omitted = _make_finder(tokenizer, preprocessing)
    rows = []
    for batch in batch_texts(texts):
        encoding = _encode_whole(batch, tokenizer, prefix)
        for i, (text, ids) in enumerate(zip(batch, encoding["input_ids"], strict=True)):
            seen, count, omitted = len(text), len(ids) - left - right, find_omitted(len(ids))
            if omitted:
                head, tail = omitted.start > left, omitted.stop < len(ids) - right
                # The last token of the head, and the first token of the tail.
                first, last = omitted.start - 1, omitted.stop
                # The spans are positions in the prefix and the text together.
                seen = encoding.token_to_chars(i, first).end - len(prefix) if head else 0
                if tail:
                    seen += len(prefix + text) - encoding.token_to_chars(i, last).start
                ids = ids[: omitted.start] + ids[omitted.stop :]
            rows.append((ids, seen, count))
    return rows


def encode_with_spans(
    text: str, tokenizer: Any, preprocessing: Preprocessing
) -> tuple[list[int], list[tuple[int, int] | None]]:
    """Tokenize a text that `Preprocessing.cut` returned, in the same way as `encode_ids`.

    Returns:
        The token ids, and the span (start, end) of each token in the text, in characters. The span
        is None for special tokens and for tokens of the prefix.
    """
    prefix = preprocessing.text_prefix
    left, right = count_added_tokens(tokenizer, prefix)
    encoding = _encode_whole([text], tokenizer, prefix)
    ids = encoding["input_ids"][0]
    omitted = _make_finder(tokenizer, preprocessing)(len(ids))
    places = [place for place in range(len(ids)) if place not in omitted]
    spans = []
    for place in places:
        is_text = left <= place < len(ids) - right
        found = encoding.token_to_chars(0, place) if is_text else None
        # The first token of the text may start with the last space of the prefix.
        start, end = (found.start - len(prefix), found.end - len(prefix)) if found else (0, 0)
        spans.append((max(0, start), end) if end > 0 else None)
    return [ids[place] for place in places], spans


def _make_finder(tokenizer: Any, preprocessing: Preprocessing) -> Callable[[int], range]:
    """Return a function that maps the token count of a text to the positions to omit."""
    left, right = count_added_tokens(tokenizer, preprocessing.text_prefix)
    windows = find_windows(tokenizer, preprocessing)
    room = preprocessing.max_length - left - right if windows is None else windows.max_tokens
    return lambda length: find_omitted(length, left, right, room, preprocessing.truncation)


def find_windows(tokenizer: Any, preprocessing: Preprocessing) -> Windows | None:
    """Return the sizes of the windows; None if the preprocessing does not use windows.

    Raises:
        UserError: `max_length` leaves no room for the text, or the stride exceeds a window.
    """
    left, right = count_added_tokens(tokenizer, preprocessing.text_prefix)
    room = preprocessing.max_length - left - right
    if room < 1:
        raise UserError(
            f"data.max_length={preprocessing.max_length} leaves no room for the text, because "
            f"special tokens and data.text_prefix take {left + right} tokens",
            where="data.max_length",
            fix=f"set data.max_length to {left + right + 1} or more",
        )
    if not preprocessing.reads_windows:
        return None
    stride, number = preprocessing.window_stride, preprocessing.max_windows
    return Windows.of(room, stride, number, left, right)


def _encode_whole(texts: Sequence[str], tokenizer: Any, prefix: str) -> Any:
    return tokenizer(
        [prefix + text for text in texts],
        # "[SEP]" in a review is ordinary text, not a special token.
        split_special_tokens=True,
        # The option `truncation` of the tokenizer could keep only one end of a text.
        truncation=False,
        padding=False,
        # This hides the warning about long texts, because they are truncated later.
        verbose=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )


def count_added_tokens(tokenizer: Any, prefix: str) -> tuple[int, int]:
    """Return the numbers of tokens that are added before and after a text.

    These are the special tokens and the prefix.
    """
    # Special tokens have the value 1 in this mask. Every text gets the same special tokens.
    mask = tokenizer("а", return_special_tokens_mask=True)["special_tokens_mask"]
    left, right = mask.index(0), mask[::-1].index(0)
    if not prefix:
        return left, right
    encoding = _encode_whole(["а"], tokenizer, prefix)
    places = range(left, len(encoding["input_ids"][0]) - right)
    # The last space belongs to the text, because many tokenizers join it to the next word.
    ends = [encoding.token_to_chars(0, place).end for place in places]
    return left + sum(end <= len(prefix.rstrip(" ")) for end in ends), right


def log_example(input_ids: Sequence[int], tokenizer: Any) -> None:
    """Decode and log the token ids of one review."""
    text = " ".join(tokenizer.decode(list(input_ids)).split())
    log.debug("example of a tokenized review (%d tokens): %.300s", len(input_ids), text)


def check_length(max_length: int, positions: int | None) -> None:
    """Raise UserError if `max_length` is less than 1 or exceeds the model's number of positions."""
    if max_length < 1 or (positions is not None and max_length > positions):
        limit = f", but the model has {positions} positions" if positions else ""
        raise UserError(
            f"data.max_length is {max_length}{limit}",
            where="data.max_length",
            fix=f"set it to a number from 1 to {positions}" if positions else "set it to 1 or more",
        )


def _compute_cache_key(texts: Sequence[str], tokenizer: Any, preprocessing: Preprocessing) -> str:
    # `strip_scores` is not part of the key, because the texts are already cleaned.
    limits: tuple[object, ...]
    # Only options that can change the token ids are part of the key.
    limits = (preprocessing.max_length, preprocessing.truncation, preprocessing.max_characters)
    if preprocessing.reads_windows:
        limits = (*limits, preprocessing.window_stride, preprocessing.max_windows)
    if preprocessing.text_prefix:
        limits = (*limits, preprocessing.text_prefix)
    digest = hashlib.sha256(f"{VERSION} {limits} ".encode())
    # The content is part of the key, because another tokenizer may be saved under the same name.
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    # The length before each text ensures that different texts give different bytes.
    for text in texts:
        raw = text.encode()
        digest.update(f"{len(raw)} ".encode())
        digest.update(raw)
    return digest.hexdigest()[:32]


def ids_digest(input_ids: Sequence[Sequence[int]]) -> str:
    """Return a hash (32 hex digits) of the token ids of all reviews."""
    # The lengths distinguish reviews that have the same tokens in total, but divided differently.
    lengths = np.fromiter(map(len, input_ids), dtype=np.int64, count=len(input_ids))
    ids = np.fromiter(chain.from_iterable(input_ids), dtype=np.int64, count=int(lengths.sum()))
    return hashlib.sha256(lengths.tobytes() + ids.tobytes()).hexdigest()[:32]
