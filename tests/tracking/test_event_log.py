"""Test that a folder keeps a run's events in order, even if the disk is full or damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from tracked import URI, FakeStore, offline, read_unchecked, tracker, use

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.event_log import EventLog
from kinopoisk_ft.tracking.offline import portable_path, resolve_path, sync_command


def write_log(folder: Path, count: int, value: float = 1.0) -> EventLog:
    """Write a log with `count` metrics events, and close it."""
    log = EventLog.new(folder)
    log.open()
    for step in range(count):
        log.append("metrics", values={"x": value}, step=step)
    log.close()
    return log


def test_passwords_are_not_recorded(tmp_path: Path) -> None:
    uri = "http://me:secret@host"
    run = offline(uri)
    run.start("one", {"tracking": {"uri": uri}}, {"overrides": f"tracking.uri={uri}"},
              folder=tmp_path)  # fmt: skip
    run.finish("FINISHED")
    (file,) = tmp_path.glob("tracking/*.jsonl")
    start, params, _ = EventLog(file).events
    # `sync` needs the password, and does not send it.
    assert start["uri"] == uri
    assert start["tags"]["overrides"] == "tracking.uri=http://me:***@host"
    assert params["values"] == {"tracking.uri": "http://me:***@host"}


def test_events_are_numbered_and_an_incomplete_line_is_removed(tmp_path: Path) -> None:
    log = write_log(tmp_path, 3, float("nan"))
    with log.file.open("a") as stream:
        stream.write('{"seq": 4, "ti')
    again = EventLog(log.file)
    again.open()
    again.append("finish", status="FINISHED")
    again.close()
    assert [(e["seq"], e["verb"]) for e in EventLog(log.file).events] == [
        (1, "metrics"), (2, "metrics"), (3, "metrics"), (4, "finish")
    ]  # fmt: skip


def test_a_damaged_line_is_reported_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = write_log(tmp_path, 3)
    lines = log.file.read_text().splitlines()
    log.file.write_text("\n".join([lines[0], lines[1][:-9], lines[2]]) + "\n")
    assert [event["seq"] for event in EventLog(log.file).events] == [1, 3]
    assert "skipping a damaged line" in caplog.text


def test_a_wrong_number_without_a_checksum_hides_no_later_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = write_log(tmp_path, 4)
    first, second, *rest = log.file.read_text().splitlines()
    wrong = json.dumps({**json.loads(second), "seq": 4})
    wrong = re.sub(r', "crc": \d+', "", wrong)
    log.file.write_text("\n".join([first, wrong, *rest]) + "\n")
    assert [event["seq"] for event in EventLog(log.file).events] == [1, 3, 4]
    assert "line 2: wrong number" in caplog.text


def test_another_thread_may_close_the_log_during_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog.new(tmp_path)
    log.open()
    log.append("metrics", values={"x": 1.0}, step=1)
    synced: list[int] = []

    def close_first(descriptor: int) -> None:
        log.close()
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", close_first)
    log.sync()
    assert synced == [log.file.stat().st_ino]


def test_no_flipped_bit_changes_an_event(tmp_path: Path) -> None:
    log = write_log(tmp_path, 1, 0.25)
    written, content = log.events, log.file.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        log.file.write_bytes(damaged)
        found = [{key: event[key] for key in written[0]} for event in EventLog(log.file).events]
        assert found in ([], written), damaged


def test_events_after_a_loss_are_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = write_log(tmp_path, 3)
    log.state.seq = 3
    log.save_state()
    log.file.write_bytes(log.file.read_bytes().splitlines(keepends=True)[0])
    again = EventLog(log.file)
    assert "has lost its last 2 events" in caplog.text
    again.append("metrics", values={"loss": 0.5}, step=1)
    assert [event["seq"] for event in again.after(again.state.seq)] == [2]


def test_a_log_without_checksums_is_read(tmp_path: Path) -> None:
    log = write_log(tmp_path, 1)
    log.file.write_text(read_unchecked(log.file))
    assert EventLog(log.file).events == log.events


def test_the_printed_command_finds_a_folder_with_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "мой $HOME"
    assert shlex.split(sync_command(folder)) == ["kinopoisk-ft", "sync", str(folder)]


def test_one_process_writes(tmp_path: Path) -> None:
    log = EventLog.new(tmp_path)
    log.open()
    with pytest.raises(UserError, match="another process"):
        EventLog(log.file).open()
    log.close()
    EventLog(log.file).open()


@pytest.mark.usefixtures("no_locks")
def test_a_log_without_locks_is_written_unless_a_lock_is_needed(tmp_path: Path) -> None:
    log = EventLog.new(tmp_path)
    with pytest.raises(OSError, match=r"Errno"):
        log.open(needs_lock=True)
    assert not log.file.exists()
    log.open()
    log.append("tags", values={"k": "v"})
    log.close()
    assert EventLog(log.file).events == log.events


def test_a_full_disk_keeps_events_in_memory_and_then_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog.new(tmp_path)
    log.open()
    log.append("metrics", values={"x": 0.0}, step=0)
    write, full = os.write, True

    def half(descriptor: int, data: bytes) -> int:
        if full:
            write(descriptor, data[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", half)
    for step in range(1, 4):
        log.append("metrics", values={"x": 0.0}, step=step)
    log.state.seq = 2
    assert (log.count_lost(), [event["seq"] for event in log.after(2)]) == (2, [3, 4])
    assert [event["seq"] for event in EventLog(log.file).events] == [1]
    full = False
    log.append("finish", status="FINISHED")
    log.close()
    assert [event["seq"] for event in EventLog(log.file).events] == [1, 2, 3, 4, 5]
    assert caplog.text.count("cannot be written to disk") == 1


def test_lost_events_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: str) -> None:
        raise OSError("gone")

    use(monkeypatch, FakeStore(fail))
    run = tracker(URI)
    run.start("one", {}, {}, folder=tmp_path)
    monkeypatch.setattr(os, "write", fail)
    run.metrics({"x": 1.0}, 1)
    run.finish("FINISHED")
    assert "2 events are lost" in caplog.text
    assert "1 events of this run are not in the MLflow store yet" in caplog.text
    assert f"kinopoisk-ft sync {tmp_path}" in caplog.text


def test_with_a_full_disk_the_store_still_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = FakeStore()
    use(monkeypatch, store)
    run = tracker(URI)
    run.start("one", {}, {}, folder=tmp_path)
    monkeypatch.setattr(os, "write", fail)
    monkeypatch.setattr(os, "replace", fail)
    for step in range(50):
        run.metrics({"x": float(step)}, step)
    run.finish("FINISHED")
    assert store.values() == [("x", step, float(step)) for step in range(50)]
    assert "events are lost" not in caplog.text


def test_files_outside_the_run_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").mkdir()
    for link in ("link", "model/weights"):
        (tmp_path / "run" / link).symlink_to(tmp_path / "secret")
    assert (
        resolve_path(portable_path(tmp_path / "run" / "a", tmp_path / "run"), tmp_path)
        == tmp_path / "a"
    )
    with pytest.raises(ValueError, match="not in the run's folder"):
        portable_path(tmp_path / "secret", tmp_path / "run")
    for text in (
        "run:../secret",
        "run:/etc/passwd",
        "run:link",
        "run:model",
        "package:../x",
        "/etc/passwd",
    ):
        with pytest.raises(ValueError, match="is outside"):
            resolve_path(text, tmp_path / "run")
