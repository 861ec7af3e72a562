"""Time classification by PyTorch and by ONNX, and measure how int8 changes the F1 score.

    python benchmarks/export.py kinopoisk.jsonl.gz outputs/lora outputs/mamba

A run with an adapter is timed with the adapter unmerged and merged. The texts are test reviews of
the run.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import allocator
from common.report import Section, command_line, publish
from common.timing import alternate
from sklearn.metrics import f1_score

from kinopoisk_ft.data.tables import read_table
from kinopoisk_ft.serving.onnx_export import Check, export_onnx
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.statistics.bootstrap import percentiles, resample

PYTORCH, MERGED = "PyTorch", "PyTorch, adapter merged"
FP32, KEPT, INT8 = "ONNX fp32", "ONNX fp32, adapter kept", "ONNX int8"
BATCH = 32
METRIC = "f1_weighted"


def make_ways(run: Path, folder: Path) -> tuple[dict[str, Predictor], dict[str, Check]]:
    """Load a run's model in PyTorch, export it, and load the exported models.

    Args:
        folder: where the exported models are written.

    Returns:
        The predictors, and the checks of the exported models.
    """
    model = run / "model"
    predictors = {PYTORCH: Predictor(model, "cpu")}
    exports = {FP32: {}, INT8: {"int8": True}}
    if predictors[PYTORCH].card.is_peft:
        merged = copy.copy(predictors[PYTORCH])
        merged.module = copy.deepcopy(merged.module).merge_and_unload()
        predictors[MERGED] = merged
        exports[KEPT] = {"keep_adapter": True}
    checks = {}
    for i, (name, options) in enumerate(exports.items()):
        checks[name] = export_onnx(model, folder / str(i), **options)
        predictors[name] = Predictor(folder / str(i), "cpu")
    return predictors, checks


def read_reviews(run: Path, data: Path, limit: int | None) -> pd.DataFrame:
    """Return `text`, `label` and `film` of test reviews, in random order."""
    frame = pd.read_parquet(run / "predictions.parquet")
    frame = frame.sample(frac=1, random_state=0)[:limit]
    texts = read_table(data).frame["content"].iloc[frame["row"].to_numpy()]
    return frame[["label", "film"]].assign(text=texts.to_numpy())


def time_ways(
    predictors: Mapping[str, Predictor], texts: list[str], rounds: int
) -> list[dict[str, Any]]:
    """Time one review and a batch of reviews with each predictor, alternately."""
    one, many = texts[:1], texts[:BATCH]
    seconds: dict[str, dict[str, list[float]]] = {}
    for title, chosen, turn in (("one", one, 1.0), ("many", many, 2.0)):
        jobs: dict[str, Callable[[], object]] = {
            name: partial(predictor.logits, chosen) for name, predictor in predictors.items()
        }
        seconds[title] = alternate(jobs, rounds, turn)
    return [
        {
            "way": name,
            "one review, ms": 1e3 * statistics.median(seconds["one"][name]),
            "reviews per second": len(many) / statistics.median(seconds["many"][name]),
            "min": len(many) / max(seconds["many"][name]),
            "max": len(many) / min(seconds["many"][name]),
        }
        for name in predictors
    ]


def compare_int8(
    predictors: Mapping[str, Predictor], checks: Mapping[str, Check], reviews: pd.DataFrame
) -> dict[str, Any]:
    """Return the F1 scores of fp32 and int8, and the interval of their difference."""
    labels, texts = reviews["label"].to_numpy(), reviews["text"].tolist()
    predicted = np.stack(
        [predictors[name].logits(texts).numpy().argmax(1) for name in (FP32, INT8)]
    )
    classes = len(predictors[PYTORCH].card.class_names)
    scored = resample(labels, predicted, classes, groups=reviews["film"].to_numpy())
    before, after = scored[METRIC].observed.tolist()
    assert np.isclose(before, f1_score(labels, predicted[0], average="weighted"))
    drawn = scored[METRIC].resampled
    change = percentiles(after - before, drawn[:, 1] - drawn[:, 0])
    return {
        "reviews": len(reviews),
        "films": reviews["film"].nunique(),
        "F1, fp32": f"{before:.4f}",
        "F1, int8": f"{after:.4f}",
        "change of F1": f"{change.mean:+.4f}",
        "95% interval": f"{change.low:+.4f} to {change.high:+.4f}",
        "other class": int((predicted[0] != predicted[1]).sum()),
        "largest difference, fp32": f"{checks[FP32].difference:.1e}",
        "largest difference, int8": f"{checks[INT8].difference:.2f}",
        "largest logit": f"{checks[FP32].largest:.1f}",
    }


def measure(run: Path, args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the times of a run's model by all predictors, and how int8 changes its F1."""
    reviews = read_reviews(run, args.data, 20 if args.quick else args.reviews)
    with tempfile.TemporaryDirectory() as folder:
        predictors, checks = make_ways(run, Path(folder))
        times = time_ways(predictors, reviews["text"].tolist(), 1 if args.quick else args.rounds)
        sizes = {
            name: sum(file.stat().st_size for file in (Path(folder) / str(i)).glob("model.onnx*"))
            for i, name in enumerate(checks)
        }
        for row in times:
            size = sizes.get(row["way"])
            row["MB"] = None if size is None else f"{size / 1e6:.1f}"
        change = compare_int8(predictors, checks, reviews)
    return [{"run": run.name, **row} for row in times], {"run": run.name, **change}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="the reviews of the runs")
    parser.add_argument(
        "runs", type=Path, nargs="*", help="output_dirs of runs with data=kinopoisk"
    )
    parser.add_argument("--reviews", type=int, help="test reviews for F1 (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    parser.add_argument("--remark", default="", help="a sentence about the machine")
    args = parser.parse_args()
    if not args.runs:
        print("skipped: give the file of reviews and the output_dirs of runs")
        return
    times, changes = zip(*(measure(run, args) for run in args.runs), strict=True)
    note = (
        "The times include tokenization and the model; threads: "
        f"{torch.get_num_threads()}. One review, and a list of {BATCH} reviews in batches of "
        "similar length; `min` and `max` over rounds. MB: size of the exported model."
    )
    f1 = (
        "Weighted F1 on test reviews; the bootstrap interval resamples whole films. `other class`: "
        "reviews for which int8 and fp32 predict different classes. `largest difference`: between "
        "logits of ONNX and PyTorch, on the texts that each export checks."
    )
    sections = [
        Section("Time", note, [row for rows in times for row in rows]),
        Section("int8", f1, list(changes)),
    ]
    publish("PyTorch and ONNX", sections, args, f"{allocator.DEFAULT} {args.remark}".strip())


if __name__ == "__main__":
    main()
