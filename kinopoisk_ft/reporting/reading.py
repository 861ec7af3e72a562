"""A run of the store as a report has it, its tags and params fit for a table."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mlflow.entities import Run

from kinopoisk_ft.reporting.runs import BASELINE, FailedRun, TrainedRun
from kinopoisk_ft.search.best_trial import BEST
from kinopoisk_ft.text import one_line, visible

GROUPS = ("model.", "adapter.", "data.", "trainer.")
# These do not change what is learned; the rest of a group's keys tells one recipe from another.
NOT_SETTINGS = ("trainer.seed", "trainer.device", "trainer.log_every", "trainer.eval_batch_size")
# Of the baseline: it is fitted in one go, on words.
NOT_ITS_SETTINGS = (*NOT_SETTINGS, "trainer.", "adapter.", "data.max_length")
NEEDED_METRICS = ("test_accuracy", "test_f1_weighted")


def missing(run: Run) -> str:
    """Return the names of what a finished run lacks, "" where it lacks nothing."""
    metrics = run.data.metrics
    found = [n for n in NEEDED_METRICS if not math.isfinite(metrics.get(n, math.nan))]
    found += [tag for tag in ("split_digest",) if not run.data.tags.get(tag)]
    return ", ".join(found)


def _approach(tags: dict[str, str]) -> str:
    parts = [tags.get("model", "unknown"), tags.get("adapter", "none")]
    return tags.get("approach") or " + ".join(p for p in parts if p != "none")


def _plain(values: Mapping[str, str]) -> dict[str, str]:
    """Return tags or params fit for a table: whoever may write to a store sets them."""
    return {key: one_line(value) for key, value in values.items()}


def trained(run: Run) -> TrainedRun:
    """Return a finished run that lacks nothing."""
    tags, params = _plain(run.data.tags), _plain(run.data.params)
    ignored = NOT_ITS_SETTINGS if tags.get("model") == BASELINE else NOT_SETTINGS
    if tags.get("source_digest"):
        ignored = (*ignored, "data.path")
    return TrainedRun(
        run_id=run.info.run_id,
        approach=_approach(tags),
        model=tags.get("model", ""),
        adapter=tags.get("adapter", "none"),
        seed=tags.get("seed") or params.get("seed", ""),
        data=tags.get("data", ""),
        split_digest=tags["split_digest"],
        source_digest=tags.get("source_digest", ""),
        device=tags.get("device", ""),
        commit=tags.get("commit", ""),
        experiment=tags.get("experiment", ""),
        overrides=tags.get("overrides", ""),
        command=visible(run.data.tags.get("command", "")),  # its quoted spaces as they are
        precision=tags.get("precision", ""),
        parent=tags.get("mlflow.parentRunId", ""),
        not_above_majority=tags.get("not_above_majority", ""),
        searched=_searched(tags),
        start_time=run.info.start_time,
        settings={
            k: params[k]
            for k in sorted(params)
            if k.startswith(GROUPS) and not k.startswith(ignored)
        },
        metrics={k: v for k, v in sorted(run.data.metrics.items()) if math.isfinite(v)},
    )


def _searched(tags: dict[str, str]) -> str:
    if "trial" in tags:
        return "trial"
    return f"experiment={BEST.stem}" if tags.get("experiment") == BEST.stem else ""


def failed(run: Run, kind: str, detail: str) -> FailedRun:
    """Return a run without a result; kind and detail as in `FailedRun`."""
    tags, params = _plain(run.data.tags), _plain(run.data.params)
    seed = tags.get("seed") or params.get("seed", "")
    return FailedRun(
        run_id=run.info.run_id, approach=_approach(tags), seed=seed, kind=kind, detail=detail
    )
