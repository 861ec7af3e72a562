"""Test that errors are reported if logs are damaged, hostile or missing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient
from syncing import _here as _here
from syncing import client as client
from syncing import place as place
from syncing import runs_of
from tracked import offline, read_unchecked

from kinopoisk_ft.commands import sync
from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.offline import find_recorded


def test_a_hostile_log_cannot_send_files_outside_its_folder(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    run = offline(experiment="traversal")
    run.start("one", {}, {}, folder=tmp_path / "run")
    run._log.append("artifact", path="run:../secret.txt")
    run._log.append("model", path="run:../..", code="run:code.py", class_names=[])
    run._log.append("__class__", values=5, tags=5, path=5)
    run.metrics({"loss": 1.0}, 1)
    run.finish("FINISHED")
    assert sync.main([str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().out
    assert shown.count("is outside the run's folder") == 2
    (found,) = runs_of(client, "traversal")
    assert not client.list_artifacts(found.info.run_id)
    assert (found.data.metrics, found.info.status) == ({"loss": 1.0}, "FINISHED")


WRONG = "the field '{}' is missing or has the wrong type"
HOSTILE_LINES = {
    "[" * 100_000: "it is not valid JSON",
    '{"seq": 7}': WRONG.format("time"),
    '{"seq": 7, "time": 1, "verb": "metrics", "values": {"a": 1}}': WRONG.format("step"),
    '{"seq": 7, "time": 1, "verb": "metrics", "step": 1}': WRONG.format("values"),
    '{"seq": 7, "time": 1, "verb": "metrics", "step": [], "values": {}}': WRONG.format("step"),
    '{"seq": 7, "time": 1, "verb": "metrics", "step": 1, "values": {"a": "x"}}': WRONG.format(
        "values"
    ),
    '{"seq": 7, "time": 1, "verb": "tags", "values": {"a": {}}}': WRONG.format("values"),
    '{"seq": 7, "time": 1, "verb": "params"}': WRONG.format("values"),
    '{"seq": 7, "time": 1, "verb": "artifact", "path": 5}': WRONG.format("path"),
    '{"seq": 7, "time": 1, "verb": "finish"}': WRONG.format("status"),
    '{"seq": 7, "time": 1, "verb": ["start"]}': WRONG.format("verb"),
    '{"seq": 7, "time": 1180591620717411303424, "verb": "reopen"}': WRONG.format("time"),
    '{"seq": 7, "time": 1, "verb": "finish", "status": "\\ud800"}': "it is not valid Unicode",
}


def test_damaged_lines_are_reported_and_the_rest_is_sent(
    client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = offline(experiment="hostile")
    run_id = run.start("one", {}, {"a": "b"}, folder=tmp_path)
    run._log.close()
    (log,) = find_logs(tmp_path)
    with log.file.open("a") as stream:
        stream.writelines(f"{line}\n" for line in HOSTILE_LINES)
    log.state_file.write_text("[" * 100_000)
    again = offline(experiment="hostile")
    assert again.start("one", {}, {}, resume=run_id, folder=tmp_path) == run_id
    again.metrics({"loss": 1.0}, 1)
    again.finish("FINISHED")
    found = find_recorded(tmp_path, {"a": "b"})
    assert found is not None
    assert found["a"] == "b"
    assert sync.main([str(tmp_path)]) == 0
    for number, wrong in enumerate(HOSTILE_LINES.values(), start=2):
        assert f"skipping a damaged line: {log.file}, line {number}: {wrong}" in caplog.text
    (found,) = runs_of(client, "hostile")
    assert (found.data.metrics, found.info.status) == ({"loss": 1.0}, "FINISHED")


def test_a_log_without_its_beginning_is_not_resumed(tmp_path: Path) -> None:
    run = offline()
    run_id = run.start("one", {}, {}, folder=tmp_path)
    run.finish("KILLED")
    (log,) = find_logs(tmp_path)
    log.file.write_text("[" * 100_000 + "\n" + log.file.read_text().partition("\n")[2])
    again = offline()
    assert again.start("one", {}, {}, resume=run_id, folder=tmp_path) != run_id
    again.finish("FINISHED")
    assert len(find_logs(tmp_path)) == 1


def test_user_errors_print_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sync.main([str(tmp_path)]) == 1
    assert "there is no recorded run" in capsys.readouterr().err
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "a.jsonl").write_text('{"seq": 1, "time": 1, "verb": "start"}\n[]\n')
    assert sync.main([str(tmp_path)]) == 1
    run = offline()
    run.start("one", {}, {}, folder=tmp_path / "run")
    run.finish("FINISHED")
    capsys.readouterr()
    for uri in ("http://127.0.0.1:9", "sqlite:////proc/no/mlflow.db"):
        assert sync.main([str(tmp_path), "--uri", uri]) == 1
        assert "the MLflow store cannot be opened" in capsys.readouterr().err
    (log,) = find_logs(tmp_path / "run")
    elsewhere = read_unchecked(log.file).replace(socket.gethostname(), "node7")
    log.file.write_text(elsewhere.replace('"uri": null', '"uri": "http://127.0.0.1:9"'))
    assert sync.main([str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "http://127.0.0.1:9; somebody else may have chosen this store" in message
    database = "postgresql+psycopg://user:secret@db/runs"
    log.file.write_text(elsewhere.replace('"uri": null', f'"uri": "{database}"'))
    assert sync.main([str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "names the store postgresql+psycopg://" in message
    assert "secret" not in message
    with pytest.raises(SystemExit, match="2"):
        sync.main([])
    assert "required: folder" in capsys.readouterr().err
