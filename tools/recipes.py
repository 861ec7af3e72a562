"""Search the settings of the recipes review_* on validation, with the same budget for each.

    ENCODER=<folder> python tools/recipes.py --data kinopoisk.jsonl.gz --workers 2

First, each recipe is trained with all its TRIALS on 1,000 labels of the split by film. Then the two
best trials of each are trained on the other splits and numbers of labels. Each finished training is
a line of docs/comparison/search.csv, and is not repeated. The test split is not used.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FOUND = Path("docs/comparison/search.csv")
# Trial 0 is the recipe itself.
SMOOTH = "trainer/loss=label_smoothing"
WINDOWS = "data.truncation=windows data.max_windows=4"
TRIALS = {
    "full": ["", "trainer.lr=5e-5", "trainer.lr=2e-4", "trainer.head_first=true",
             "trainer.layer_decay=0.9", "trainer.epochs=2 trainer.min_steps=400", SMOOTH,
             f"{WINDOWS} model.pooling=mean"],
    "lora": ["", "trainer.lr=1e-3", "trainer.lr=4e-3", "trainer.head_first=true",
             "adapter.config.r=16", "trainer.epochs=2 trainer.min_steps=400", SMOOTH,
             f"{WINDOWS} model.pooling=mean"],
    "frozen": ["", "trainer.lr=5e-5", "trainer.lr=2e-4", "trainer.head_first=true",
               "adapter.layers=8", "trainer.epochs=8 trainer.min_steps=400", SMOOTH,
               f"{WINDOWS} model.pooling=mean"],
    "mamba": ["", "trainer.lr=5e-4", "trainer.lr=2e-3", "trainer.epochs=8 trainer.min_steps=400",
              "data.max_length=512", "data.max_length=2048", SMOOTH, "trainer.weight_decay=0.1"],
    "tfidf": ["", "model.C=1", "model.C=100", "model.ngrams=1", "model.ngrams=3",
              "model.min_df=1", "model.min_df=5", "model.class_weight=null"],
}  # fmt: skip
FIRST = ("film", "1000")
OTHERS = [(split, labels) for split in ("film", "random") for labels in ("300", "1000", "null")]
OTHERS.remove(FIRST)
KEPT = 2
WRITING = threading.Lock()


@dataclass(frozen=True)
class Training:
    """One training of the search.

    Args:
        labels: data.train_limit; null for all labels of the train split.
        overrides: the settings of the trial that differ from the recipe.
    """

    approach: str
    split: str
    labels: str
    overrides: str


@dataclass(frozen=True)
class Found(Training):
    """A finished training.

    Args:
        val_f1_weighted: the best weighted F1 on validation.
        cpu_hours: CPU time of the process, which has one thread; other processes do not change it.
    """

    val_f1_weighted: float
    cpu_hours: float
    commit: str

    @property
    def training(self) -> Training:
        """Return the training without its result."""
        return Training(self.approach, self.split, self.labels, self.overrides)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="kinopoisk.jsonl.gz")
    parser.add_argument("--approaches", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--workers", type=int, default=1, help="trainings at the same time")
    args = parser.parse_args()
    for plan in (plan_first, plan_second):
        finished = read_found()
        missing = [one for one in plan(args.approaches, finished)
                   if one not in {found.training for found in finished}]  # fmt: skip
        print(f"{plan.__name__}: {len(missing)} trainings are missing in {FOUND}", flush=True)
        with ThreadPoolExecutor(args.workers) as pool:
            failed = sum(pool.map(lambda one: train(one, args.data), missing))
        if failed:
            sys.exit(f"{failed} trainings failed")


def plan_first(approaches: Iterable[str], _: Sequence[Found]) -> list[Training]:
    """Return all trials on the first split and number of labels."""
    return [Training(name, *FIRST, trial) for name in approaches for trial in TRIALS[name]]


def plan_second(approaches: Iterable[str], finished: Sequence[Found]) -> list[Training]:
    """Return the best trials of each approach on the other splits and numbers of labels."""
    first: dict[str, list[Found]] = defaultdict(list)
    for found in finished:
        if (found.split, found.labels) == FIRST:
            first[found.approach].append(found)
    return [
        Training(name, *other, found.overrides)
        for name in approaches
        for found in sorted(first[name], key=lambda found: -found.val_f1_weighted)[:KEPT]
        for other in OTHERS
    ]


def read_found() -> list[Found]:
    """Read the finished trainings."""
    if not FOUND.exists():
        return []
    with FOUND.open(newline="", encoding="utf-8") as file:
        return [
            Found(**row | {key: float(row[key]) for key in ("val_f1_weighted", "cpu_hours")})
            for row in csv.DictReader(file)
        ]


def train(one: Training, data: str) -> bool:
    """Train once, and append the result to the file; return whether it failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "kinopoisk_ft", f"experiment=review_{one.approach}", "seed=0",
            f"data.split={one.split}", f"data.train_limit={one.labels}", f"data.path={data}",
            "tracking=none", f"output_dir={folder}", *one.overrides.split(),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        log = Path(folder, "trial.log")
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        print(f"{one}: exit code {process.returncode}", flush=True)
        if process.returncode:
            print(log.read_text()[-2000:], flush=True)
            return True
        hours = (usage.ru_utime + usage.ru_stime) / 3600
        score = read_validation(Path(folder))
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    write(Found(**asdict(one), val_f1_weighted=score, cpu_hours=round(hours, 3), commit=commit))
    return False


def read_validation(folder: Path) -> float:
    """Return the weighted F1 of the predictions on the validation split."""
    import pandas as pd
    from sklearn.metrics import f1_score

    table = pd.read_parquet(folder / "predictions_validation.parquet")
    return round(float(f1_score(table["label"], table["predicted"], average="weighted")), 5)


def write(found: Found) -> None:
    """Append a finished training to the file."""
    names = [field.name for field in fields(Found)]
    with WRITING, FOUND.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerow(asdict(found))


if __name__ == "__main__":
    main()
