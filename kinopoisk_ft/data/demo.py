"""Read the bundled data set: 4,000 invented reviews in Russian that need no network.

The reviews have what makes real ones hard: negation, contrast, reversed expectations, opinions of
others, long retellings. They say nothing about how a method does on real reviews.
`tools/demo_reviews` wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kinopoisk_ft.data.recipe import DataRecipe
from kinopoisk_ft.errors import UserError

FILE = Path(__file__).with_name("demo_reviews.jsonl.gz")


@dataclass(kw_only=True)
class Demo(DataRecipe):
    """The first of the bundled reviews.

    Args:
        reviews: how many to read, before Neutral is left out.
        seed: order of the reviews; 0 is the order of the file.
    """

    reviews: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reviews < 1:
            raise UserError(
                f"reviews cannot be {self.reviews!r}",
                where="data.reviews",
                fix="give a positive number",
            )

    def read(self) -> pd.DataFrame:
        """Return the columns text, label, film, author, date, title, grade10, row.

        Raises:
            UserError: more reviews are asked for than there are.
        """
        frame = pd.read_json(FILE, lines=True, dtype=False)
        if self.reviews > len(frame):
            raise UserError(
                f"{self.reviews:,} reviews are asked for, and {len(frame):,} are bundled",
                where="data.reviews",
                fix="write more with `python -m tools.demo_reviews.generate` in a checkout, and "
                "read them with data=file data.path=<file>",
            )
        if self.seed:
            frame = frame.iloc[np.random.default_rng(self.seed).permutation(len(frame))]
        return frame.head(self.reviews).reset_index(drop=True)
