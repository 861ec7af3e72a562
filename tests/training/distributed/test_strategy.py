"""Check rejected settings of several processes, and that a rank that fails alone does not wait."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from composing import compose_config
from distributed_child import environment
from omegaconf import OmegaConf

from kinopoisk_ft.config.validate import prepare
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.sweep import ParentRun
from kinopoisk_ft.training.distributed import processes as distributed
from kinopoisk_ft.training.distributed import strategy
from kinopoisk_ft.training.distributed.processes import (
    SingleRankError,
    explain_lost_connection,
    join_processes,
)
from kinopoisk_ft.training.distributed.strategy import check_strategy
from kinopoisk_ft.training.memory import explain_out_of_memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ddp", 16, 4, "off", "off", "fp32"), "micro_batch_size=4"),
        (("auto", 3, None, "off", "off", "fp32"), "batch_size=3"),
        (("auto", 16, None, "fp32", "off", "fp32"), "prefix_cache=fp32"),
        (("auto", 16, None, "off", "default", "fp32"), "compile=default"),
        (("fsdp", 16, None, "off", "off", "fp16"), "fp16"),
    ],
)
def test_invalid_settings_are_rejected(
    options: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy, "world_size", lambda: 4)
    with pytest.raises(UserError, match=message):
        check_strategy(*options)


def test_strategy_and_start_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="torchrun"), join_processes("fsdp", "cpu"):
        pass
    for key, value in environment(1, 2, 1).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="strategy=none"), join_processes("none", "cpu"):
        pass
    monkeypatch.setattr(distributed, "choose_device", lambda _: torch.device("mps"))
    with pytest.raises(UserError, match="has no device"), join_processes("auto", "auto"):
        pass


def test_a_sweep_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in environment(0, 2, 1).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit):
        ParentRun().on_multirun_start(OmegaConf.create({}))
    assert "start each run with torchrun" in capsys.readouterr().err


def test_restarts_need_a_folder_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in environment(0, 2, 1).items():
        monkeypatch.setenv(key, value)
    prepare(compose_config())
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    prepare(compose_config(["output_dir=run"]))
    with pytest.raises(UserError, match=r"max-restarts 3(.|\n)*to do: .*output_dir=outputs/run1"):
        prepare(compose_config())


@pytest.mark.parametrize(
    ("error", "waits"),
    [(UserError("a mistake"), True), (KeyboardInterrupt(), True),
     (MemoryError(), False), (RuntimeError("a fault"), False)],
)  # fmt: skip
def test_who_fails_alone_does_not_wait_for_the_others(
    error: BaseException, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks may wait for the failed one in a step, which would never end."""
    store = MagicMock()
    for key, value in environment(1, 2, 1).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    monkeypatch.setattr(distributed, "_open_fresh_store", lambda *_: store)
    monkeypatch.setattr(distributed, "dist", MagicMock())
    monkeypatch.setattr("kinopoisk_ft.training.memory.world_size", lambda: 2)
    expected = UserError if isinstance(error, MemoryError) else type(error)
    with pytest.raises(expected), join_processes("ddp", "cpu"), explain_out_of_memory("training"):
        raise error
    assert store.wait.called == waits


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("[/w/gloo/pair.cc:547] Read error [10.0.0.2]:1: Connection reset by peer. "
                   "This is typically caused by a remote worker."),
      r"is lost: Read error \[10.0.0.2\]:1: Connection reset by peer\n  to do: .*same command"),
     (dist.DistNetworkError("The client socket has timed out"), "is lost: The client socket has")],
)  # fmt: skip
def test_a_lost_connection_is_explained(error: RuntimeError, message: str) -> None:
    with pytest.raises(SingleRankError, match=message), explain_lost_connection():
        raise error


def test_other_errors_are_not_taken_for_a_lost_connection() -> None:
    with pytest.raises(RuntimeError, match="a fault"), explain_lost_connection():
        raise RuntimeError("a fault")


def test_processes_that_do_not_start_are_not_awaited_forever() -> None:
    with pytest.raises(SingleRankError, match="2 of 3 processes did not start within 1 s"):
        distributed._open_fresh_store(dist.HashStore(), 0, 3, 1)
