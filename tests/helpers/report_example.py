"""Make an invented study, with everything that runs record, for tests of the report's page."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Metric, RunTag
from report_store import Store, answers

EVIL = "<script>alert('отзыв')</script>"
# Model, adapter, skill, training seconds, trainable and total parameters, memory in MB, tokens/s,
# the share of a review that is read, experiment.
STUDY = [
    ("bert", "none", 3.0, 3000.0, 177_854_978, 177_854_978, 5200, 5100, 0.93, "study_bert_full"),
    ("bert", "freeze", 3.05, 1400.0, 14_767_874, 177_854_978, 2100, 9800, 0.93,
     "study_bert_frozen"),
    ("bert", "lora", 3.1, 2000.0, 296_450, 178_149_890, 3300, 7200, 0.93, "study_bert_lora"),
    ("mamba", "none", 2.2, 2600.0, 129_136_898, 129_136_898, 6100, 2400, 0.71, "study_mamba"),
    ("tfidf", "none", 2.3, 20.0, 40_001, 40_001, 300, 90000, 1.0, "study_tfidf"),
]  # fmt: skip
LEAKAGE = {
    "leakage_majority_accuracy": 0.85, "leakage_near_duplicates": 12,
    "leakage_near_duplicates_share": 0.02, "leakage_films": 40, "leakage_films_share": 0.98,
    "leakage_film_guess_accuracy": 0.88,
}  # fmt: skip
DATA = {
    "counts": {"train": {"Bad": 300, "Good": 1200}, "test": {"Bad": 120, "Good": 480}},
    "leakage": LEAKAGE, "leakage_film_guess_p_value": 0.0004,
}  # fmt: skip
ENVIRONMENT = {
    "python": "3.11.7", "platform": "Linux", "processor": "A processor", "cores": 8,
    "memory_gib": 32.0, "device": "cpu", "packages": {"torch": "2.13.0", "peft": None},
}  # fmt: skip


@functools.cache
def example_store(session_folder: Path) -> Store:
    """Return the session's only example; the runs of its sweep are in the experiment "example"."""
    folder = session_folder / "report_example"
    folder.mkdir()
    made = Store(folder)
    home = made.experiment("example")
    tags = {"kinopoisk_ft.kind": "sweep"}
    made.sweep = made.client.create_run(home, tags=tags, run_name="study").info.run_id
    for recipe in STUDY:
        for seed in range(1 if recipe[0] == "tfidf" else 3):
            _add(made, home, recipe, seed)
    return made


def cut_answers(seed: int, skill: float, seen: float) -> pd.DataFrame:
    """Return the predictions of a run whose model reads less of longer reviews."""
    table = answers(seed, skill)
    return table.assign(truncated=(1 - 4000 * seen / table["characters"]).clip(0, 1))


def _add(made: Store, home: str, recipe: tuple, seed: int) -> None:
    model, adapter, skill, seconds, trainable, total, memory, speed, seen, experiment = recipe
    run_id = made.answered(home, (model, adapter, seconds, trainable, total), seed, skill)
    table = cut_answers(seed, skill, seen**4)
    table["text"] = [f"{EVIL} Отзыв {i}. " + "Фильм как фильм. " * (i % 40) for i in table["row"]]
    file = made.folder / "predictions.parquet"
    table.to_parquet(file, index=False)
    made.client.log_artifact(run_id, str(file))
    metrics = [Metric(key, value, 0, 0) for key, value in LEAKAGE.items()]
    metrics += [Metric("peak_memory_mb", memory, 0, 0), Metric("tokens_per_second", speed, 0, 0)]
    metrics.append(Metric("characters_seen_share", seen, 0, 0))
    if model != "tfidf":
        noise = np.random.default_rng(seed).normal(0, 0.02, 60)
        metrics += [
            Metric("train_loss", float(0.6 / (1 + i / 12) + 0.1 + noise[i]), 0, 20 * (i + 1))
            for i in range(60)
        ]
        for epoch, (loss, f1) in enumerate(((0.32, 0.88), (0.25, 0.92), (0.26, 0.93)), start=1):
            metrics.append(Metric("val_loss", loss, 0, 400 * epoch))
            metrics.append(Metric("val_f1_weighted", f1 + 0.001 * seed, 0, 400 * epoch))
    where = f"sweep=study tracking.uri={made.uri} output_dir=/tmp/study"
    if model == "tfidf":
        where += " 'data.path=/data/two words.csv'"
    tags = {"experiment": experiment, "overrides": f"experiment={experiment} seed={seed} {where}"}
    # For TF-IDF, only the overrides are recorded, not the command.
    if model != "tfidf":
        given = f"--config-dir my hydra.mode=RUN experiment={experiment} sweep=study seed={seed}"
        tags["command"] = f"python -m kinopoisk_ft {given}"
    tags |= {"commit": "0123456789ab", "precision": "bf16", "mlflow.parentRunId": made.sweep}
    made.client.log_batch(
        run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()]
    )
    for name, value in (("data.json", DATA), ("environment.json", ENVIRONMENT)):
        made.client.log_text(run_id, json.dumps(value), name)
