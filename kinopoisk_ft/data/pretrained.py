"""What a base has read of the test reviews: pretraining leaves digests of its texts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kinopoisk_ft.data.duplicates import ends
from kinopoisk_ft.data.leakage import Overlap

log = logging.getLogger(__name__)

FILE = "pretraining_texts.safetensors"  # in the folder of a base
DIGESTS = "digests"


@dataclass(frozen=True)
class TextsRead:
    """Texts that a model was pretrained on, by the digests of their ends.

    Args:
        digests: sorted (N,) int64, of the first and the last letters of each text.
        complete: whether that is all it has read.
    """

    digests: np.ndarray
    complete: bool

    @classmethod
    def of(cls, base: str | None) -> TextsRead:
        """Return what a base has read: nothing after a random start (None), unknown of a hub's."""
        nothing = np.array([], dtype=np.int64)
        file = Path(base or "", FILE)
        if base is None or not file.is_file():
            return cls(nothing, complete=base is None)
        try:
            with safe_open(file, "numpy") as kept:
                complete = (kept.metadata() or {}).get("complete") == "True"
                return cls(kept.get_tensor(DIGESTS), complete)
        except (OSError, SafetensorError) as error:
            log.warning("what %s was pretrained on cannot be read: %s", base, error)
            return cls(nothing, complete=False)

    def and_of(self, texts: Iterable[str]) -> TextsRead:
        """Return these and further texts."""
        return TextsRead(np.union1d(self.digests, _digests(texts).ravel()), self.complete)

    def write(self, folder: Path) -> None:
        """Leave the record in the folder of a base."""
        save_file({DIGESTS: self.digests}, folder / FILE, {"complete": str(self.complete)})

    def overlap(self, texts: list[str]) -> Overlap | None:
        """Return how many of the texts, or near-duplicates of them, it has read.

        None where that is unknown: none of what is recorded, and there was more.
        """
        met = 0
        if len(self.digests):
            met = int(np.isin(_digests(texts), self.digests).any(axis=1).sum())
        return Overlap(met, len(texts)) if met or self.complete else None


def _digests(texts: Iterable[str]) -> np.ndarray:
    """Return digests (N, 2) of the ends of texts; a text without letters is like no other."""
    found = [
        [_digest(f"{side}{end or text}") for side, end in zip("<>", ends(text), strict=True)]
        for text in texts
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
