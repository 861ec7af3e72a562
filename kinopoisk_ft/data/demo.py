"""Load the bundled data set of 4,000 invented reviews in Russian.

The reviews contain what makes real reviews hard to classify: negation, contrast, reversed
expectations, opinions of other people, long plot summaries. Results on these reviews do not predict
results on real reviews. The reviews were generated with `tools/demo_reviews`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kinopoisk_ft.data.recipe import DataRecipe
from kinopoisk_ft.errors import UserError, check_positive

FILE = Path(__file__).with_name("demo_reviews.jsonl.gz")


def read_example_texts(count: int) -> list[str]:
    """Return the texts of the first `count` bundled reviews."""
    texts: list[str] = pd.read_json(FILE, lines=True, nrows=count)["text"].tolist()
    return texts


@dataclass(kw_only=True)
class Demo(DataRecipe):
    """The bundled data set (data=demo).

    Args:
        reviews: number of reviews to read. If `classes` is 2, fewer remain, because the Neutral
            reviews among them are dropped.
        seed: random seed for shuffling the reviews; if 0, they are not shuffled.
    """

    reviews: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.reviews, "data.reviews")

    def read(self) -> pd.DataFrame:
        """Shuffle the data set if `seed` is not 0, and return its first `reviews` reviews."""
        # With dtype=False, dates stay strings, which `parse_date` in split_rules.py expects.
        frame = pd.read_json(FILE, lines=True, dtype=False)
        if self.reviews > len(frame):
            raise UserError(
                f"{self.reviews:,} reviews are requested, but only {len(frame):,} are bundled",
                where="data.reviews",
                fix="generate more with `python -m tools.demo_reviews.generate` in a clone of the "
                "repository, and read them with data=file data.path=<file>",
            )
        if self.seed:
            frame = frame.iloc[np.random.default_rng(self.seed).permutation(len(frame))]
        return frame.head(self.reviews).reset_index(drop=True)
