"""Reviews as token ids, made once: the cache is keyed by what determines the bytes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

VERSION = "1"  # of the layout below; a change makes new files


def cache_dir() -> Path:
    """Return the folder of caches: `KINOPOISK_FT_CACHE`, else `~/.cache/kinopoisk_ft`."""
    return Path(os.environ.get("KINOPOISK_FT_CACHE", Path.home() / ".cache" / "kinopoisk_ft"))


def tokenize(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Return token ids of each text, the head of it up to `max_length` tokens, without padding."""
    key = _key(texts, tokenizer, max_length)
    file = cache_dir() / "tokens" / f"{key}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        found = tokenizer(batch["text"], truncation=True, max_length=max_length, padding=False)
        return {"input_ids": found["input_ids"]}

    table = datasets.Dataset.from_dict({"text": list(texts)}).map(
        encode,
        batched=True,
        remove_columns=["text"],
        cache_file_name=str(file),
        new_fingerprint=key,
    )
    return list(table["input_ids"])


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


def _key(texts: Sequence[str], tokenizer: Any, max_length: int) -> str:
    digest = hashlib.sha256(f"{VERSION} {max_length} ".encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for text in texts:
        raw = text.encode()
        digest.update(f"{len(raw)} ".encode())
        digest.update(raw)
    return digest.hexdigest()[:32]
