"""Make runs and tables of a report without a store."""

from __future__ import annotations

from report_store import answers

from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.reporting.table import Table, tables
from kinopoisk_ft.statistics.predictions import Predictions


def trained(
    model: str = "bert", adapter: str = "none", seed: int = 0, **changes: object
) -> TrainedRun:
    metrics = {"test_accuracy": 0.9, "test_f1_weighted": 0.9, "test_f1_macro": 0.8}
    metrics |= {"train_seconds": 100.0, "eval_seconds": 5.0, "trainable_parameters": 1000.0}
    metrics |= {"total_parameters": 2000.0, "majority_f1_weighted": 0.7}
    metrics |= {
        key: value
        for key, value in changes.items()
        if key in metrics or key.startswith(("leakage_", "train_reviews"))
    }
    return TrainedRun(
        run_id=f"{model}{adapter}{seed}{changes}",
        approach=model if adapter == "none" else f"{model} + {adapter}",
        model=model,
        adapter=adapter,
        seed=str(seed),
        data="kinopoisk",
        split_digest=str(changes.get("split", "a")),
        source_digest=str(changes.get("source", "s")),
        device=str(changes.get("device", "cpu")),
        precision=str(changes.get("precision", "")),
        commit="",
        start_time=0,
        settings={"data.max_length": "256", **changes.get("settings", {})},
        metrics=metrics,
        not_learned=str(changes.get("not_learned", "")),
        searched=str(changes.get("searched", "")),
    )


def one_table(*runs: TrainedRun, answered: dict[str, list[float]] | None = None) -> Table:
    """Return the table of runs; `answered` has the skill of each approach's predictions."""
    skills = {name: iter(values) for name, values in (answered or {}).items()}
    predictions = {
        run.run_id: Predictions.of(answers(int(run.seed), next(skills[run.approach])), run.run_id)
        for run in runs
        if run.approach in skills
    }
    (table,) = tables(list(runs), predictions)
    return table
