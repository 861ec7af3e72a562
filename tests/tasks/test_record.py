"""Test that MLflow can read the recorded source of the data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlflow.data
import pandas as pd
import pytest
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
from mlflow.entities import Dataset

from kinopoisk_ft.tasks.record import record_data
from kinopoisk_ft.tracking.base import Tracker


class Recorder(Tracker):
    """A tracker that keeps the data sets."""

    def __init__(self) -> None:
        self.found: list[dict[str, str]] = []

    def dataset(self, context: str, values: dict[str, str]) -> None:
        self.found.append(values)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "a/b", "revision": "abc"}, {"path": "a/b", "revision": "abc"}),
        ({"name": "a/b", "subset": "c", "files": "*x*"}, {"data_dir": "c", "data_files": "*x*"}),
        ({"name": "a/b", "path": "c.csv"}, {"uri": "c.csv"}),
        ({"_target_": "a.B"}, {"tags": {"mlflow.source.name": "a.B"}}),
    ],
)
def test_mlflow_reads_the_source(
    options: dict[str, str], expected: dict[str, Any], tmp_path: Any
) -> None:
    part = pd.DataFrame({"text": ["a"], "label": [0]})
    leakage = SimpleNamespace(metrics=dict, p_value=None)
    data: Any = SimpleNamespace(
        train=part, val=part, test=part, class_names=("Bad",), counts={}, split_digest="",
        source_digest="", leakage=leakage,
    )  # fmt: skip
    tracker = Recorder()
    record_data(data, options, tracker, tmp_path)
    source = mlflow.data.get_source(Dataset(name="data", **tracker.found[0]))
    assert source.to_dict().items() >= expected.items()
    if "path" in expected:
        assert isinstance(source, HuggingFaceDatasetSource)
    elif "tags" in expected:
        assert isinstance(source, CodeDatasetSource)
