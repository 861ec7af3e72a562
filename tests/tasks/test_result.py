"""Test the result of a run as JSON, from this version and earlier ones."""

from __future__ import annotations

import json
from pathlib import Path

from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.event_log import OFFLINE

# The tag `kinopoisk_ft.result` as a version without MCC wrote it.
EARLIER = {
    "accuracy": 0.95, "f1_weighted": 0.94, "f1_macro": 0.9, "train_seconds": 10.5,
    "eval_seconds": 1.5, "trainable_parameters": 770, "total_parameters": 33558146,
    "run_id": "abc", "model_dir": "/tmp/run/model", "objective": 0.93, "warning": "",
}  # fmt: skip


def test_the_result_of_an_earlier_version_is_read() -> None:
    result = Result.read(json.dumps(EARLIER))
    assert result.scores == {"accuracy": 0.95, "f1_weighted": 0.94, "f1_macro": 0.9}
    assert (result.objective, result.total_parameters) == (0.93, 33558146)
    assert Result.read(result.as_json()) == result
    assert json.loads(result.as_json()) == EARLIER | {"mcc": None}


def test_what_was_not_measured_is_null_in_the_file_and_left_out_of_the_table(
    tmp_path: Path,
) -> None:
    """Pretraining has no test scores."""
    scores = dict.fromkeys(("accuracy", "f1_weighted", "f1_macro"))
    result = Result.read(json.dumps(EARLIER | scores | {"warning": "not to be compared"}))
    assert result.scores == {}
    result.write(tmp_path / "result.json")
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == {key: value for key, value in EARLIER.items() if key not in
                       ("objective", "warning")} | scores | {"mcc": None}  # fmt: skip
    table = result.table("study", None)
    assert "accuracy" not in table
    assert table.splitlines()[-1] == "not to be compared"


def test_the_table_ends_with_commands_for_this_run() -> None:
    result = Result.read(json.dumps(EARLIER))
    assert result.table("two words", None).splitlines()[-2:] == [
        'classify: kinopoisk-ft predict /tmp/run/model "your text"',
        "compare:  kinopoisk-ft report --experiment 'two words'",
    ]
    last = result.table("study", "http://me:secret@host").splitlines()[-1]
    assert last.endswith("kinopoisk-ft report --experiment study --uri 'http://me:***@host'")
    # The store lacks a run without tracking, and a run that waits for `kinopoisk-ft sync`.
    for run_id in ("", f"{OFFLINE}ab12"):
        absent = Result.read(json.dumps(EARLIER | {"run_id": run_id}))
        assert "report" not in absent.table("study", None)
