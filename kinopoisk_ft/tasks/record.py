"""Record a run: write files to the output folder, and log files and metrics."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.models.card import read_card
from kinopoisk_ft.provenance import describe_environment
from kinopoisk_ft.statistics.calibration import calibration_metrics
from kinopoisk_ft.statistics.metrics import (
    HEADLINE,
    classification_scores,
    count_confusion,
    majority_scores,
    per_class,
)
from kinopoisk_ft.statistics.predictions import as_table
from kinopoisk_ft.tasks.learned import check_learned
from kinopoisk_ft.tasks.result import Fitted, Result
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.offline import NOTE_TAG

log = logging.getLogger(__name__)

# Files that a run writes and logs in addition to result.json and data.json.
FILES = (
    "predictions.parquet",
    "predictions_validation.parquet",
    "class_report.json",
    "environment.json",
    "confusion_matrix.png",
)
LEARNING_CURVE = "learning_curve.png"
# MLflow stores this file as the code of the logged model.
PYFUNC = Path(__file__).parents[1] / "serving" / "pyfunc.py"


def record_data(
    data: DataSplit, options: Mapping[str, Any], tracker: Tracker, out_dir: Path
) -> None:
    """Record the splits, their digests, and the leakage from train to test.

    Args:
        options: the config node `data`.
    """
    for context, part in (("train", data.train), ("validation", data.val), ("test", data.test)):
        tracker.dataset(context, _describe_part(part, data.class_names, options))
    tracker.tags({"split_digest": data.split_digest, "source_digest": data.source_digest})
    leakage = data.leakage.metrics()
    tracker.metrics(leakage, 0)
    description = {
        "class_names": data.class_names,
        "counts": data.counts,
        "source_digest": data.source_digest,
        "split_digest": data.split_digest,
        "leakage": leakage,
        "leakage_film_guess_p_value": data.leakage.p_value,
    }
    write_json(out_dir / "data.json", description)
    tracker.artifact(out_dir / "data.json")


def _describe_part(
    part: pd.DataFrame, class_names: tuple[str, ...], options: Mapping[str, Any]
) -> dict[str, str]:
    """Return the fields of the MLflow data set for one split, except the data set's name."""
    columns = {"text": "string", "label": "long"}
    # One uint64 per row.
    hashes = pd.util.hash_pandas_object(part[[*columns]], index=False).to_numpy()
    counts = np.bincount(part["label"], minlength=len(class_names))
    source: dict[str, Any]
    if options.get("path"):
        kind, source = "local", {"uri": str(options["path"])}
    elif options.get("name"):
        # These are the names in MLflow's HuggingFaceDatasetSource, where a subset is a data_dir.
        kind, source = (
            "hugging_face",
            {
                "path": str(options["name"]),
                "data_dir": options.get("subset"),
                "data_files": options.get("files"),
                "revision": options.get("revision"),
            },
        )
    else:
        kind, source = "code", {"tags": {"mlflow.source.name": str(options.get("_target_"))}}
    # The JSON of an MLflow schema, as in the data sets that MLflow logs itself.
    schema = [{"type": kind, "name": name, "required": True} for name, kind in columns.items()]
    profile = {
        "num_rows": len(part),
        "reviews_by_class": dict(zip(class_names, counts.tolist(), strict=True)),
        "characters": int(part["text"].str.len().sum()),
    }
    return {
        # MLflow allows 36 characters. Little-endian bytes give the same digest on every machine.
        "digest": hashlib.sha256(hashes.astype("<u8").tobytes()).hexdigest()[:16],
        "source_type": kind,
        "source": json.dumps(source, ensure_ascii=False),
        "schema": json.dumps({"mlflow_colspec": schema}),
        "profile": json.dumps(profile, ensure_ascii=False),
    }


def record(fitted: Fitted, data: DataSplit, tracker: Tracker, run_id: str, out_dir: Path) -> Result:
    """Score the test predictions, record the run, and return the result."""
    labels = data.test["label"].to_numpy()
    scores = classification_scores(fitted.test_probabilities, labels)
    warning, failed_checks = check_learned(fitted, data)
    majority = majority_scores(data.train["label"].to_numpy(), labels)
    result = Result(
        scores=scores,
        train_seconds=fitted.seconds["train"],
        eval_seconds=fitted.seconds["eval"],
        trainable_parameters=fitted.trainable_parameters,
        total_parameters=fitted.total_parameters,
        run_id=run_id,
        model_dir=str(out_dir / "model"),
        objective=fitted.objective,
        warning=warning,
        majority=majority[HEADLINE],
    )
    # The test metrics are logged at the step of the last validation.
    step = int(fitted.history[-1]["step"]) if fitted.history else 0
    metrics = _collect_metrics(fitted, data, scores, majority)
    tracker.metrics(metrics, step)
    tracker.tags({"device": fitted.device, "precision": fitted.precision})
    # MLflow shows this tag as the description of the run.
    tracker.tags({NOTE_TAG: _describe_result(result, data)})
    if warning:
        tracker.tags({"not_learned": failed_checks})
    predicted = fitted.test_probabilities.argmax(axis=1)
    counts = count_confusion(labels, predicted, len(data.class_names))
    files = _write_files(fitted, data, counts, out_dir)
    result.write(out_dir / "result.json")
    for file in [*files, out_dir / "result.json"]:
        tracker.artifact(file)
    # The model card is written from the files above into the model folder, which is logged next.
    _write_card(out_dir, metrics, warning)
    tracker.model(out_dir / "model", PYFUNC, data.class_names)
    return result


def _describe_result(result: Result, data: DataSplit) -> str:
    """Return the description of the run and of its model in MLflow, as Markdown."""
    sentences = [
        f"**{HEADLINE} {result.scores[HEADLINE]:.4f}** on {len(data.test):,} test reviews "
        f"({result.majority:.4f} for always predicting the majority class).",
        f"Trained on {len(data.train):,} reviews in {result.train_seconds:.1f} s, with "
        f"{result.trainable_parameters:,} of {result.total_parameters:,} parameters.",
        result.warning,
    ]
    # Four spaces make the command a code block in Markdown.
    model = shlex.quote(result.run_id or result.model_dir)
    command = f'    kinopoisk-ft predict {model} "your text"'
    return f"{' '.join(filter(None, sentences))}\n\n{command}"


def _collect_metrics(
    fitted: Fitted, data: DataSplit, scores: dict[str, float], majority: dict[str, float]
) -> dict[str, float]:
    train_seconds = fitted.seconds["train"]
    overlap = fitted.pretraining_overlap
    return {
        **{f"test_{key}": value for key, value in scores.items()},
        "test_loss": fitted.test_loss,
        **{f"majority_{key}": value for key, value in majority.items()},
        # Each section of the clock is a metric, for example train_seconds.
        **{f"{key}_seconds": value for key, value in fitted.seconds.items()},
        "train_reviews": len(data.train),
        "trainable_parameters": fitted.trainable_parameters,
        "total_parameters": fitted.total_parameters,
        # Tokens without padding, per second of training.
        "tokens_per_second": fitted.train_tokens / train_seconds if train_seconds else 0.0,
        **_get_peak_memory(fitted),
        **calibration_metrics(
            fitted.val_probabilities,
            data.val["label"].to_numpy(),
            fitted.test_probabilities,
            data.test["label"].to_numpy(),
        ),
        **fitted.seen.metrics(),
        **({} if overlap is None else overlap.metrics("pretraining")),
    }


def _get_peak_memory(fitted: Fitted) -> dict[str, float]:
    if math.isfinite(fitted.peak_memory_mb):
        return {"peak_memory_mb": fitted.peak_memory_mb}
    log.warning("peak memory is unknown: this system does not record it")
    return {}


def _write_files(fitted: Fitted, data: DataSplit, counts: np.ndarray, out_dir: Path) -> list[Path]:
    # Matplotlib takes a second to import, and only a finished run needs it.
    from kinopoisk_ft.reporting.plots.run_plots import plot_confusion, plot_learning_curve

    names = data.class_names
    for file, name, part, probabilities in (
        ("predictions.parquet", "test", data.test, fitted.test_probabilities),
        ("predictions_validation.parquet", "val", data.val, fitted.val_probabilities),
    ):
        rows = part.assign(truncated=fitted.truncated[name])
        as_table(rows, probabilities, names, data.train).to_parquet(out_dir / file, index=False)
    write_json(out_dir / "class_report.json", per_class(counts, names))
    write_json(out_dir / "environment.json", describe_environment(torch.device(fitted.device)))
    plot_confusion(counts, names, out_dir / "confusion_matrix.png")
    files = [out_dir / name for name in FILES]
    # A model without training steps, such as TF-IDF, has no learning curve.
    if len(fitted.history) > 1:
        files.append(out_dir / LEARNING_CURVE)
        plot_learning_curve(fitted.history, files[-1])
    return files


def _write_card(out_dir: Path, metrics: dict[str, float], warning: str) -> None:
    # Only a finished run needs Jinja.
    from kinopoisk_ft.reporting.model_card import write_model_card

    write_model_card(out_dir, asdict(read_card(out_dir / "model")), metrics, warning)


def write_json(file: Path, value: Any) -> None:
    """Write a value to a file as indented JSON."""
    write_atomically(file, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
