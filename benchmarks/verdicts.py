"""Check the report's intervals and verdicts on simulated studies with a known true difference.

    python benchmarks/verdicts.py

The published test predictions in docs/comparison/runs are the population, so the true difference of
two approaches is the one over all of them. Each simulated study draws films with all their reviews,
and seeds, from these predictions; then two approaches are compared as in a report. The random split
has test reviews of 132 films. The split by film has 33, two of which have half of the reviews.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import allocator
from common.report import Section, command_line, publish
from statsmodels.stats.proportion import proportion_confint

from kinopoisk_ft.statistics.bootstrap import resample
from kinopoisk_ft.statistics.equivalence import MARGIN, STRICT_MARGIN, Decision, decide
from kinopoisk_ft.statistics.metrics import HEADLINE, count_confusion, scores
from kinopoisk_ft.statistics.pairs import Difference, difference

RUNS = Path("docs/comparison/runs")
SPLITS = ("random", "film")
# The first one is compared with each of the others.
APPROACHES = ("full", "lora", "frozen", "head", "bert_scratch", "mamba", "tfidf")
SEEDS, FEW_FILMS, RESAMPLES = 3, 30, 1000


@dataclass(frozen=True)
class World:
    """The test reviews, and the predictions of all seeds of each approach.

    Args:
        films: row indices of the reviews of each film.
        predicted: {approach: (seeds, N)}.
    """

    labels: np.ndarray
    films: list[np.ndarray]
    predicted: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> World:
        """Read the predictions of the approaches with at least two seeds."""
        predicted, first = {}, pd.DataFrame()
        for approach in APPROACHES:
            files = sorted(folder.glob(f"{approach}-[0-9]*/predictions.parquet"))
            tables = [pd.read_parquet(file).sort_values("row") for file in files]
            if len(tables) > 1:
                first = tables[0]
                predicted[approach] = np.stack([table["predicted"] for table in tables])
        groups = first["film"].fillna("unknown").to_numpy()
        films = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        return cls(first["label"].to_numpy(), films, predicted)

    def truth(self, a: str, b: str) -> float:
        """Return the mean difference of weighted F1 over all seeds, on all reviews."""
        found = []
        for name in (a, b):
            counts = count_confusion(self.labels, self.predicted[name], 2)
            found.append(float(scores(counts)[HEADLINE].mean()))
        return found[0] - found[1]

    def study(self, a: str, b: str, films: int, number: int) -> Difference:
        """Draw films and seeds, and compare two approaches."""
        rng = np.random.default_rng((3, number))
        drawn = [self.films[i] for i in rng.integers(0, len(self.films), films)]
        rows = np.concatenate(drawn)
        groups = np.repeat(np.arange(films), [len(film) for film in drawn])
        runs = []
        for name in (a, b):
            seeds = rng.integers(0, len(self.predicted[name]), SEEDS)
            runs.append(self.predicted[name][seeds][:, rows])
        scored = resample(
            self.labels[rows], np.concatenate(runs), 2, groups=groups, seed=number,
            resamples=RESAMPLES,
        )  # fmt: skip
        one, other = (scored[HEADLINE].select(part) for part in (slice(SEEDS), slice(SEEDS, None)))
        return difference(one, other, same_seeds=False)


def share(hits: Sequence[bool]) -> str:
    """Format a share with its 95% interval (Wilson)."""
    low, high = proportion_confint(sum(hits), len(hits), method="wilson")
    return f"{np.mean(hits):.3f} [{low:.3f}, {high:.3f}]"


def check_pair(world: World, a: str, b: str, films: int, studies: int) -> dict[str, Any]:
    """Return how often the interval contains the true difference, and the verdicts at the margin.

    The margin is the true loss of the worse approach, so both verdicts should be rare.
    """
    if world.truth(a, b) > 0:
        a, b = b, a
    true = world.truth(a, b)
    found = [world.study(a, b, films, number) for number in range(studies)]
    covered = [d.low <= true <= d.high for d in found]
    verdicts = [decide([d], -true)[0].verdict for d in found]
    return {
        "pair": f"{a} - {b}",
        "films": films,
        "true difference": round(true, 4),
        "interval contains it": share(covered),
        "as good at this margin": share([verdict == "as good" for verdict in verdicts]),
        "worse at this margin": share([verdict == "worse" for verdict in verdicts]),
    }


def check_power(world: World, name: str, films: int, studies: int) -> dict[str, Any]:
    """Return how often an approach is called as good as itself or worse than itself.

    The row also says whether the requested number of reviews leads to a decision.
    """
    found = [world.study(name, name, films, number) for number in range(studies)]
    row: dict[str, Any] = {"approach": name, "films": films}
    for margin in (MARGIN, STRICT_MARGIN):
        verdicts = [decide([d], margin)[0].verdict for d in found]
        row[f"as good within {margin}"] = share([verdict == "as good" for verdict in verdicts])
        row[f"worse by {margin}"] = share([verdict == "worse" for verdict in verdicts])
    row |= check_needed(world, name, films, found)
    return row


def check_needed(
    world: World, name: str, films: int, found: Sequence[Difference]
) -> dict[str, Any]:
    """Repeat each undecided study with the number of films that it requested."""
    decisions: list[Decision] = [decide([d], STRICT_MARGIN)[0] for d in found]
    factors = [(i, one.more_reviews) for i, one in enumerate(decisions) if one.more_reviews]
    decided = []
    for number, factor in factors:
        more = int(np.ceil(films * factor))
        again = world.study(name, name, more, 10**6 + number)
        decided.append(decide([again], STRICT_MARGIN)[0].verdict == "as good")
    if not decided:
        return {"median of the requested factor": "-", "decided with it": "-"}
    middle = float(np.median([factor for _, factor in factors]))
    return {"median of the requested factor": f"{middle:.1f}", "decided with it": share(decided)}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--studies", type=int, default=1000)
    args = parser.parse_args()
    studies = 40 if args.quick else args.studies
    sections = []
    for split in SPLITS:
        world = World.read(args.runs / split)
        numbers, (best, *others) = (FEW_FILMS, len(world.films)), world.predicted
        seeds = ", ".join(f"{name} {len(runs)}" for name, runs in world.predicted.items())
        largest = sorted((len(film) for film in world.films), reverse=True)[:3]
        sizes = ", ".join(map(str, largest))
        note = (
            f"{studies} studies of {SEEDS} seeds each. The population has {len(world.labels)} "
            f"reviews, {len(world.films)} films (the largest have {sizes} reviews) and "
            f"the seeds of the published runs: {seeds}. Shares have 95% intervals."
        )
        pairs = [check_pair(world, *pair, films, studies) for films in numbers
                 for pair in ((name, best) for name in others)]  # fmt: skip
        title = f"{split}: intervals, and verdicts if the true loss equals the margin"
        sections.append(Section(title, note, pairs))
        power = [check_power(world, name, films, studies) for films in numbers
                 for name in world.predicted]  # fmt: skip
        note = (
            "Each approach is compared with itself. Undecided studies (margin 0.01) are repeated "
            "with the number of reviews that they requested; 80% of these should be decided."
        )
        title = f"{split}: verdicts if there is no difference"
        sections.append(Section(title, note, power))
    publish("Verdicts on simulated studies", sections, args, allocator.DEFAULT)


if __name__ == "__main__":
    main()
