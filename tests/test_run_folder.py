"""Test the lock of a run's folder, and when a run is resumed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from composing import compose_config, plain
from mlflow import MlflowClient
from places import SAVED
from safetensors import SafetensorError
from tracked import refuse_access

from kinopoisk_ft import run_folder
from kinopoisk_ft.cli import main
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.run_folder import RunFolder, read_seed
from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.store import default_uri

CONFIG = {"seed": 1, "resume": "auto"}


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT", 0.0)


def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path, CONFIG), RunFolder(tmp_path, CONFIG)
    with first.lock():
        with pytest.raises(
            UserError, match="another process is using this output folder"
        ) as raised:
            second.lock().__enter__()
        assert str(tmp_path) in str(raised.value)
    with second.lock():
        pass


def test_a_run_without_a_configurable_loss_is_resumed(tmp_path: Path) -> None:
    """Such a run trained with cross-entropy, so it is not resumed with another loss."""
    RunFolder(tmp_path, {**CONFIG, "trainer": {"lr": 0.1}}).mark_started("old run")
    (tmp_path / "checkpoints" / "checkpoint-000001").mkdir(parents=True)

    def now(loss: str) -> RunFolder:
        target = f"kinopoisk_ft.training.losses.{loss}"
        settings = {"lr": 0.1, "loss": {"_target_": target, "_partial_": True}}
        return RunFolder(tmp_path, {**CONFIG, "trainer": settings})

    assert now("cross_entropy").find_run() == "old run"
    with pytest.raises(UserError, match=r"trainer\.loss\._target_: .*cross_entropy.* before"):
        now("focal").find_run()


def test_a_resumed_pretraining_may_save_its_model_to_another_folder(tmp_path: Path) -> None:
    RunFolder(tmp_path, {**CONFIG, "task": {"save_to": "base"}}).mark_started("old run")
    (tmp_path / "checkpoints" / "checkpoint-000001").mkdir(parents=True)
    assert RunFolder(tmp_path, {**CONFIG, "task": {"save_to": "base.0"}}).find_run() == "old run"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        # Kinopoisk reviews were read from the start by default then.
        ("bert_lora", ["model=bert", "adapter=lora", "data=kinopoisk", "data.truncation=head"]),
        ("mamba2_freeze", ["model=mamba2_scratch", "adapter=freeze", "data=file",
                           "data.path=reviews.csv", "data.text_column=text",
                           "data.label_column=label"]),
    ],
)  # fmt: skip
def test_a_run_of_a_version_with_fewer_options_is_resumed(
    name: str, overrides: list[str], tmp_path: Path
) -> None:
    """The files lack all options that were added since; those have values that mean the same."""
    shutil.copy(SAVED / "unfinished_runs" / f"{name}.json", tmp_path / "unfinished.json")
    (tmp_path / "checkpoints" / "checkpoint-000001").mkdir(parents=True)

    def find(*more: str) -> str | None:
        return RunFolder(tmp_path, plain(compose_config([*overrides, *more]))).find_run()

    assert find() == find("tuning_trials=5", "trainer.checkpoint_every=9") == "old run"
    for change in ("trainer.min_steps=9", "trainer.gradient_checkpointing=true"):
        with pytest.raises(UserError, match=change.split("=")[0].replace(".", r"\.")):
            find(change)


@pytest.mark.usefixtures("no_locks")
def test_a_run_continues_if_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["experiment=demo_tfidf", "data.reviews=100", "tracking=offline", "output_dir=run"]
    assert command(args) == 0
    assert "the output folder cannot be locked; make sure that no" in capsys.readouterr().out
    (log,) = find_logs(tmp_path / "run")
    assert log.status == "FINISHED"
    assert "test_f1_weighted" in {key for e in log.events for key in e.get("values", ())}
    # A soft lock would remain after the death of a process.
    assert not [file for file in tmp_path.rglob("*.lock") if file.stat().st_size]


def test_the_lock_of_another_user_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filelock.FileLock.acquire", refuse_access)
    message = "the output folder cannot be locked: Permission denied"
    with pytest.raises(UserError, match=message), RunFolder(tmp_path, CONFIG).lock():
        pass


@pytest.mark.usefixtures("no_locks")
def test_the_prefix_cache_needs_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message comes before the data are read: the table does not exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    options = ["adapter=freeze", "trainer.prefix_cache=fp16", "tracking=none", "output_dir=run"]
    table = ["data=file", "data.path=a.csv", "data.text_column=t", "data.label_column=l"]
    assert command(["model=bert_scratch", *table, *options]) == 1
    assert "the prefix cache needs a file system with locks" in capsys.readouterr().err


def test_the_command_fails_before_it_starts_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A locked folder and an unwritable result file are both reported before the run starts."""
    monkeypatch.chdir(tmp_path)
    args = ["experiment=demo_tfidf", "tracking=none", "output_dir=run"]
    with RunFolder(tmp_path / "run", CONFIG).lock():
        assert command(args) == 1
    assert "another process is using this output folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command([*args, "result_json=file/result.json"]) == 1
    told = capsys.readouterr().err
    assert "the file cannot be written" in told
    assert "set result_json to a file" in told
    assert not (tmp_path / "run" / "unfinished.json").exists()


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/model/model.safetensors"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
])  # fmt: skip
def test_a_full_disk_is_reported(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kinopoisk_ft.tasks.finetune.record_data", fail)
    assert command(["experiment=demo_tfidf", "tracking=none", "output_dir=run"]) == 1
    told = capsys.readouterr().err
    assert "the disk is full or read-only: No space left on device" in told
    assert ("run/model/model.safetensors" in told) == isinstance(error, OSError)
    assert "run the same command again" in told
    assert (tmp_path / "run" / "unfinished.json").exists()


@pytest.mark.parametrize("fault", ["full disk", "truncated log"])
def test_the_repeated_command_continues_the_run_in_the_store(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store never gets a second run, neither a failed one nor one that seems to be running."""
    monkeypatch.chdir(tmp_path)
    args = ["experiment=demo_tfidf", "data.reviews=300", "output_dir=run"]

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/unfinished.json")

    with monkeypatch.context() as patched:
        if fault == "full disk":
            patched.setattr(RunFolder, "mark_started", fail)
        else:
            patched.setattr("kinopoisk_ft.tasks.finetune.record_data", fail)
        assert command(args) == 1
    for file in tmp_path.glob("run/tracking/*.jsonl"):
        os.truncate(file, 10)
    assert command(args) == 0
    client = MlflowClient(default_uri())
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/f1_weighted"] > 0.5


def command(args: list[str]) -> int:
    try:
        return main(args)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_run_is_resumed_only_with_the_same_config(tmp_path: Path) -> None:
    config = {"seed": 7, "resume": "auto", "trainer": {"lr": 0.1}, "output_dir": "a"}
    assert RunFolder(tmp_path, config).find_run() is None
    RunFolder(tmp_path, config).mark_started("id")
    assert read_seed(tmp_path, "auto") == 7
    assert read_seed(tmp_path, "never") is None
    assert RunFolder(tmp_path, {**config, "output_dir": "b"}).find_run() == "id"
    other = {**config, "trainer": {"lr": 0.2}}
    checkpoint = tmp_path / "checkpoints" / "checkpoint-000001"
    checkpoint.mkdir(parents=True)
    best = checkpoint.with_name("best-00000001.safetensors")
    best.touch()
    with pytest.raises(UserError, match=r"trainer.lr: 0.1 before, 0.2 now"):
        RunFolder(tmp_path, other).find_run()
    assert checkpoint.exists()
    assert best.exists()
    assert RunFolder(tmp_path, {**other, "resume": "never"}).find_run() is None
    assert not list(checkpoint.parent.iterdir())
    assert read_seed(tmp_path, "auto") is None
