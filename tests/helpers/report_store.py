"""Fill a store with invented runs through MLflow's client, for the tests of the report."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score

from kinopoisk_ft.commands.report import main
from kinopoisk_ft.statistics.calibration import calibration_metrics

SPLIT, OTHER_SPLIT = "a1" * 32, "b2" * 32
MAJORITY = {"accuracy": 0.85, "f1_weighted": 0.7811, "f1_macro": 0.4595}
# Model, adapter, seed, accuracy, weighted F1, macro F1, training seconds, trainable and total
# parameters.
FINISHED = [
    ("bert", "none", 0, 0.9371, 0.9341, 0.871, 3067.9, 177_854_978, 177_854_978),
    ("bert", "none", 1, 0.9365, 0.9352, 0.873, 3001.0, 177_854_978, 177_854_978),
    ("bert", "lora", 0, 0.9513, 0.9510, 0.905, 2114.4, 296_450, 178_149_890),
    ("bert", "lora", 1, 0.9501, 0.9499, 0.903, 2090.0, 296_450, 178_149_890),
    ("bert", "lora", 2, 0.9520, 0.9517, 0.907, 2155.5, 296_450, 178_149_890),
    ("mamba", "none", 0, 0.9277, 0.9245, 0.852, 2634.5, 129_136_898, 129_136_898),
    ("tfidf", "none", 0, 0.9150, 0.9101, 0.830, 21.5, 0, 0),
]
# Model, adapter, skill, training seconds, trainable parameters.
ANSWERED = [
    ("bert", "none", 3.0, 3000.0, 177_854_978), ("bert", "lora", 3.1, 2000.0, 296_450),
    ("mamba", "none", 2.2, 2600.0, 129_136_898), ("tfidf", "none", 2.3, 20.0, 40_000),
]  # fmt: skip
COLUMNS = ["model", "adapter", "seed", "accuracy", "f1_weighted", "f1_macro"]
COLUMNS += ["train_seconds", "trainable_parameters", "total_parameters"]
TRACEBACK = """torch.OutOfMemoryError: an earlier one

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "run.py", line 1, in <module>
    train()
InstantiationException: Error in call to target 'a | b':
UserError("no such folder")
full_key: model
"""


class Store:
    """An MLflow store with the parent runs `sweep` and `unfinished`, whose children failed."""

    sweep: str
    unfinished: str

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(self.uri)
        self.folder = folder

    def experiment(self, name: str) -> str:
        return self.client.create_experiment(name, (self.folder / "artifacts").as_uri())

    def answered(
        self, experiment: str, approach: tuple, seed: int, skill: float, shift: int = 0
    ) -> str:
        """Add a run with predictions for each review, and the metrics of scikit-learn on them."""
        table = answers(seed, skill)
        labels, guesses = table["label"], table["predicted"]
        scores = [accuracy_score(labels, guesses)]
        scores += [f1_score(labels, guesses, average=how) for how in ("weighted", "macro")]
        run_id = self.run(experiment, (*approach[:2], seed, *scores, *approach[2:]))
        validation = answers(seed, skill, world=1)
        parts = [(t[["p_Bad", "p_Good"]].to_numpy(), t["label"].to_numpy()) for t in
                 (validation, table)]  # fmt: skip
        found = calibration_metrics(*parts[0], *parts[1])
        self.client.log_batch(run_id, [Metric(name, value, 0, 0) for name, value in found.items()])
        file = self.folder / "predictions.parquet"
        table.assign(row=table["row"] + shift).to_parquet(file, index=False)
        self.client.log_artifact(run_id, str(file))
        return run_id

    def run(self, experiment: str, row: tuple, status: str = "FINISHED", **changes: str) -> str:
        values = dict(zip(COLUMNS, row, strict=True))
        model, adapter, seed = (str(values.pop(key)) for key in COLUMNS[:3])
        tags = {"kinopoisk_ft.kind": "train", "model": model, "adapter": adapter, "seed": seed}
        tags["approach"] = model if adapter == "none" else f"{model} + {adapter}"
        tags |= {"data": "kinopoisk", "split_digest": SPLIT, "device": "cpu"}
        tags |= {key: value for key, value in changes.items() if key in tags}
        if "parent" in changes:
            tags["mlflow.parentRunId"] = changes["parent"]
        length = "512" if model == "mamba" else "256"
        params = {"data.max_length": changes.get("max_length", length), "seed": seed}
        params |= {"adapter.lr": changes.get("lr", "0.001"), "trainer.seed": seed}
        params |= {key: value for key, value in changes.items() if key.startswith("data.")}
        name = f"{tags['approach']}, seed {seed}"
        run_id = self.client.create_run(experiment, tags=tags, run_name=name).info.run_id
        metrics = {f"test_{key}": values.pop(key) for key in COLUMNS[3:6]} | values
        metrics |= {f"majority_{key}": value for key, value in MAJORITY.items()}
        metrics["eval_seconds"] = values["train_seconds"] / 20
        kept = [Metric(key, value, 0, 0) for key, value in metrics.items()]
        self.client.log_batch(
            run_id,
            metrics=kept if status == "FINISHED" else [],
            params=[Param(key, value) for key, value in params.items()],
        )
        if status == "FAILED":
            self.client.log_text(run_id, TRACEBACK, "traceback.txt")
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id


def answers(seed: int, skill: float, reviews: int = 600, world: int = 0) -> pd.DataFrame:
    """Return the predictions of an invented run; `world` selects the reviews."""
    reader = np.random.default_rng(world)
    labels = (reader.random(reviews) < 0.8).astype(int)
    difficulty = reader.normal(0, 2, reviews)
    rng = np.random.default_rng([1, world, seed, int(100 * skill)])
    margin = (skill - difficulty + rng.normal(0, 0.5, reviews)) * (2 * labels - 1)
    second = expit(3 * margin)
    film = reader.integers(0, 40, reviews)
    return pd.DataFrame({
        "row": np.arange(reviews) * 3, "label": labels, "predicted": (second > 0.5).astype(int),
        "p_Bad": 1 - second, "p_Good": second, "characters": reader.integers(40, 4000, reviews),
        "film": film.astype(str), "film_in_train": film < 25, "grade10": 1 + labels * 6 + film % 3,
    })  # fmt: skip


@functools.cache
def filled_store(session_folder: Path) -> Store:
    """Return the session's only store, because creating its tables takes seconds."""
    folder = session_folder / "report_store"
    folder.mkdir()
    made = Store(folder)
    study = made.experiment("kinopoisk_ft")
    # The next run replaces this one.
    made.run(study, ("bert", "none", 0, 0.5, 0.5, 0.5, 1.0, 1, 1))
    for row in FINISHED:
        made.run(study, row)
    for seed in (5, 6):
        made.run(study, ("mamba", "lora", seed, *[0] * 6), status="FAILED")
    made.run(study, ("bert", "lora", 7, *[0] * 6), status="KILLED")
    made.run(study, ("bert", "lora", 8, *[0] * 6), status="RUNNING")
    single = made.experiment("one seed")
    for row in FINISHED[0], FINISHED[2]:
        made.run(single, row)
    splits = made.experiment("two splits")
    made.run(splits, FINISHED[0])
    made.run(splits, FINISHED[2], split_digest=OTHER_SPLIT)
    made.run(splits, FINISHED[3], split_digest=OTHER_SPLIT, max_length="512")
    answered = made.experiment("answered")
    for model, adapter, skill, seconds, trainable in ANSWERED:
        for seed in range(1 if model == "tfidf" else 3):
            approach = (model, adapter, seconds, trainable, 177_854_978)
            made.answered(answered, approach, seed, skill)
    damaged = made.answered(made.experiment("damaged"), ("bert", "none", 1.0, 1, 1), 0, 3.0)
    made.client.log_text(damaged, "no parquet", "predictions.parquet")
    mixed = made.experiment("mixed rows")
    made.answered(mixed, ("bert", "none", 1.0, 1, 1), 0, 3.0)
    made.answered(mixed, ("mamba", "none", 1.0, 1, 1), 0, 2.0, shift=1)
    made.run(mixed, FINISHED[-1])
    broken = made.experiment("nothing finished")
    made.run(broken, FINISHED[0], status="FAILED")
    tags = {"kinopoisk_ft.kind": "sweep"}
    made.sweep = made.client.create_run(made.experiment("sweeps"), tags=tags).info.run_id
    home = made.client.get_run(made.sweep).info.experiment_id
    for lr in "0.001", "0.0003":
        made.run(home, FINISHED[2], lr=lr, parent=made.sweep)
    made.run(home, FINISHED[5])
    home = made.experiment("unfinished")
    made.unfinished = made.client.create_run(home, tags=tags).info.run_id
    for status in "FAILED", "RUNNING":
        made.run(home, FINISHED[0], status=status, parent=made.unfinished)
    return made


def unpadded(markdown: Path) -> str:
    return re.sub(" +", " ", markdown.read_text(encoding="utf-8"))


def _save_nothing(_: Figure, folder: Path, stem: str) -> list[Path]:
    paths = [folder / f"{stem}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        path.touch()
    return paths


def report(
    store: Store, output: Path, *args: str, figures: bool = False
) -> tuple[pd.DataFrame, dict, str]:
    """Run the command; return the CSV, the JSON, and the Markdown without padding in cells.

    Without `figures`, their files are empty, because each takes half a second.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr("kinopoisk_ft.reporting.output.save_both", _save_nothing)
        assert main(["--uri", store.uri, f"output={output}", *args]) == 0
    text = unpadded(output / "comparison.md")
    whole = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    return pd.read_csv(output / "comparison.csv", dtype={"split_digest": str}), whole, text
