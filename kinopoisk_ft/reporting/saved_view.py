"""Show a sweep in the MLflow UI, with a saved view and a description of the parent run."""

from __future__ import annotations

import json
import time
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from kinopoisk_ft.reporting.columns import COLUMNS, MAJORITY, columns_in
from kinopoisk_ft.reporting.document import Document
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.markdown import as_note
from kinopoisk_ft.reporting.plots.run_plots import CURVES
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.tracking.mlflow_names import GROUPS, PREFIXED, to_mlflow

# The MLflow UI stores a saved view as a tag of the experiment, and shows it at
# #/experiments/<id>/runs?viewStateShareKey=kinopoisk_ft
KEY = "kinopoisk_ft"
VIEW = f"mlflow.sharedViewState.{KEY}"
SCORE, SECONDS = to_mlflow(f"test_{HEADLINE}"), to_mlflow(COLUMNS["train_seconds"].name)
# Without this part of an address, the MLflow UI may show its menu for language-model apps.
MODEL_TRAINING = "workflowType=machine_learning"
# Id of the section of charts that is not folded.
CHARTS = "comparison"


def describe_sweep(
    client: MlflowClient, parent: str, document: Document, locale: Locale, has_files: bool
) -> None:
    """Show the result of a sweep in the MLflow UI.

    The parent run gets a description with the table of results, and the scores of the best run if
    all runs have the same test reviews and are not trials of a hyperparameter search. The
    experiment gets a saved view. If the experiment has no description yet, it also gets a
    description with links to the view.

    Args:
        has_files: whether the files of the report are artifacts of the parent run.
    """
    _log_best(client, parent, document)
    end = locale("see_files") if has_files else locale("see_report", parent=parent)
    # MLflow rejects a longer tag, or cuts it off in the middle of a table.
    note = as_note(document, locale, MAX_TAG_VAL_LENGTH, end)
    client.set_tag(parent, MLFLOW_RUN_NOTE, note)
    run = client.get_run(parent).info
    view = _view(locale("view"), run.start_time)
    client.set_experiment_tag(run.experiment_id, VIEW, view)
    if not client.get_experiment(run.experiment_id).tags.get(MLFLOW_RUN_NOTE):
        # A relative address is valid for every host and port of the UI.
        address = f"#/experiments/{run.experiment_id}/runs?viewStateShareKey={KEY}&{MODEL_TRAINING}"
        note = locale("view_note", table=address, charts=f"{address}&compareRunsMode=CHART")
        client.set_experiment_tag(run.experiment_id, MLFLOW_RUN_NOTE, note)


def _log_best(client: MlflowClient, parent: str, document: Document) -> None:
    tables = [section.table for section in document.sections]
    # A search chooses by validation score, and scores on different test reviews have no maximum.
    if len({(t.data, t.source_digest, t.split_digest) for t in tables}) > 1 or any(
        table.only_trials for table in tables
    ):
        return
    rows = [row for table in tables for row in table.rows]
    rows = [row for row in rows if row.learned] or rows
    runs = [run for row in rows for run in row.runs]
    best = max(runs, key=lambda run: run.metrics[f"test_{HEADLINE}"])
    known, now = client.get_run(parent).data.metrics, int(time.time() * 1000)
    found = {to_mlflow(name): best.metrics[name] for name in _shown() if name in best.metrics}
    # Unchanged values are not logged again, because each report would add a point to the history.
    new = [Metric(name, value, now, 0) for name, value in found.items() if known.get(name) != value]
    client.log_batch(parent, metrics=new)
    client.set_tag(parent, "best_run", f"{best.approach}, seed {best.seed}: {best.run_id}")


def _shown() -> list[str]:
    # The headline metric, by which the view sorts the runs, comes first.
    shown = sorted(columns_in("view"), key=lambda column: column.name != HEADLINE)
    return [column.metric or column.name for column in shown] + [MAJORITY[HEADLINE]]


def view_columns() -> list[str]:
    """Return the columns of the run table in the saved MLflow view, from left to right."""
    return ["tags.`seed`", *(f"metrics.`{to_mlflow(name)}`" for name in _shown())]


def _view(name: str, created: int) -> str:
    # MLflow 3 stores saved views in this format.
    columns = view_columns()
    state = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "orderByKey": f"metrics.`{SCORE}`",
        "orderByAsc": False,
        # The parent run repeats the scores of the best run, so the view leaves it out.
        "searchFilter": "tags.`kinopoisk_ft.kind` = 'train'",
        "compareRunCharts": _make_charts(),
        "compareRunSections": _make_sections(name),
        # Otherwise, the UI sorts the sections by name.
        "isAccordionReordered": True,
    }
    envelope = {"name": name, "createdAt": created, "updatedAt": created}
    return json.dumps(envelope | {"state": json.dumps(state)})


def _make_charts() -> list[dict[str, Any]]:
    axes = {"xaxis": {"key": SECONDS, "type": "METRIC"}, "yaxis": {"key": SCORE, "type": "METRIC"}}
    charts: list[dict[str, Any]] = [
        # By default, the UI draws only 10 runs in a bar or line chart.
        {"type": "SCATTER", "runsCountToCompare": 100, **axes},
        *({"type": "BAR", "runsCountToCompare": 100, "metricKey": key} for key in (SCORE, SECONDS)),
        *(
            {"type": "LINE", "runsCountToCompare": 100, "metricKey": key,
             "selectedMetricKeys": [key], "xAxisKey": "step", "selectedXAxisMetricKey": "",
             "xAxisScaleType": "linear", "scaleType": "linear", "lineSmoothness": 0, "range": {}}
            for key in map(to_mlflow, CURVES)
        ),
    ]  # fmt: skip
    common = {"metricSectionId": CHARTS, "deleted": False, "isGenerated": False}
    return [{"uuid": f"{CHARTS}-{i}", **common, **chart} for i, chart in enumerate(charts)]


def _make_sections(name: str) -> list[dict[str, Any]]:
    # The MLflow UI adds a chart of each other metric to the section of its group, which is folded.
    folded = sorted({*PREFIXED, *GROUPS} - {"system"})
    names = {CHARTS: name} | {one: one for one in (*folded, "System metrics")}
    return [
        {"uuid": key, "name": shown, "display": key == CHARTS, "isReordered": True,
         "deleted": False, "isGenerated": key != CHARTS}
        for key, shown in names.items()
    ]  # fmt: skip
