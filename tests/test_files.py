"""Test that files written in several steps are complete or ignored after a kill at any step."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import pytest
from killed import dies
from mlflow import MlflowClient
from tracked import offline, tracker

from kinopoisk_ft.commands import sync
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import check_writable, write_atomically, write_folder_atomically
from kinopoisk_ft.models.card import CARD, read_card
from kinopoisk_ft.reporting import output
from kinopoisk_ft.search.study import JOURNAL, open_study
from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.offline import close_killed

NAMES = ("a.bin", "inner/b.bin", CARD)
# Files that only the old version has.
OLD = ("old.bin", "inner/old.bin")


def fill(folder: Path, content: str) -> None:
    with write_folder_atomically(folder, CARD, ["*.bin", "inner/*.bin"]) as part:
        for name in (*NAMES, *(OLD if content == "old" else ())):
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_text(content)


def test_files_of_the_user_are_kept(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in OLD:
        (tmp_path / name).touch()
    fill(tmp_path, "new")
    assert all((tmp_path / name).exists() for name in OLD)


@pytest.mark.parametrize("before", ["old", None])
def test_a_folder_is_complete_or_lacks_its_last_file(tmp_path: Path, before: str | None) -> None:
    seen = set()
    for moment in range(20):
        folder = tmp_path / str(moment) / "model"
        if before:
            fill(folder, before)
        killed = dies(functools.partial(fill, folder, "new"), moment)
        names = (*NAMES, *OLD)
        kept = {(folder / name).read_text() for name in names if (folder / name).is_file()}
        if (folder / CARD).is_file():
            assert len(kept) == 1
        else:
            with pytest.raises(UserError, match="not a model folder"):
                read_card(folder)
        seen.add(tuple(sorted(kept)))
        fill(folder, "newer")
        assert {(folder / name).read_text() for name in NAMES} == {"newer"}
        assert not any((folder / name).exists() for name in OLD)
        assert [file.name for file in folder.parent.iterdir()] == ["model"]
        if not killed:
            break
    assert not killed
    assert ("new",) in seen


def test_other_files_of_a_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    fill(tmp_path, "new")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_small_file_has_the_old_content_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "note.json"
    for moment, expected in ((0, "old"), (1, "new")):
        write_atomically(file, "old")
        dies(functools.partial(write_atomically, file, "new"), moment)
        assert file.read_text() == expected


def test_a_search_continues_after_a_truncated_line(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    study = open_study(tmp_path, None, "maximize")
    study.set_user_attr("about", 1)
    journal = tmp_path / JOURNAL
    with journal.open("ab") as stream:
        stream.write(journal.read_bytes().splitlines()[-1][:20])
    study = open_study(tmp_path, None, "maximize")
    study.set_user_attr("metric", 2)
    assert open_study(tmp_path, None).user_attrs == {"about": 1, "metric": 2}


def test_temporary_folders_of_killed_reports_are_deleted(tmp_path: Path) -> None:
    for name, age in (("killed", 7200), ("written", 10)):
        folder = tmp_path / f"{output.PREFIX}{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    output._delete_left_over(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == [f"{output.PREFIX}written"]


def test_a_run_that_was_killed_before_it_could_be_resumed_is_closed(tmp_path: Path) -> None:
    """The run is in the store, but its folder does not have the record of an unfinished run yet."""
    uri, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "run"
    killed = tracker(uri)
    run_id = killed.start("one", {}, {}, folder=folder)
    killed._delivery.stop()
    killed._delivery.close(10)
    killed._log.close()
    close_killed(tracker(uri), folder, run_id)
    client = MlflowClient(uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    close_killed(tracker(uri), folder, None)
    assert client.get_run(run_id).info.status == "KILLED"
    assert sync.main([str(folder)]) == 0
    assert len(client.search_runs([client.get_run(run_id).info.experiment_id])) == 1


def test_killed_runs_outside_any_store_are_closed_too(tmp_path: Path) -> None:
    killed = offline()
    killed.start("one", {}, {}, folder=tmp_path)
    killed._log.append("metrics", values={"loss": 1.0}, step=1, time=4_000_000_000_000)
    killed._log.close()
    close_killed(offline(), tmp_path, None)
    ended = find_logs(tmp_path)[0].events
    assert [event["verb"] for event in ended] == ["start", "metrics", "reopen", "finish"]
    assert ended[-1]["status"] == "KILLED"
    # Nobody knows when the process died, but it lived until its last event.
    assert ended[-1]["time"] == ended[1]["time"] == 4_000_000_000_000


def test_only_a_regular_file_can_be_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a device or a pipe"), ("folder", "a folder")):
        with pytest.raises(UserError, match=f"cannot be written: it is {kind}"):
            check_writable(tmp_path / name, "--html")
    (tmp_path / "page").write_text("old")
    check_writable(tmp_path / "page", "--html")
    assert {file.name for file in tmp_path.iterdir()} == {"pipe", "folder", "page"}
