"""Several processes train one model as one process would."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_child import member
from safetensors.torch import load_file
from torch.distributed import TCPStore

CHILDREN = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    """Start the process that children are forks of: it imports once what they all need."""
    CHILDREN.set_forkserver_preload(["distributed_child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def together(
    count: int, folder: Path, kind: str, adapter: str = "none", more: Sequence[str] = (),
    last: int | None = None,
) -> list[int | None]:  # fmt: skip
    """Train in so many processes, 0: in one without torchrun; returns their exit codes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (count, store.port, folder, kind, adapter, more, last)
    started = [
        CHILDREN.Process(target=member, args=(number, *arguments))
        for number in range(max(1, count))
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(100)
    return [process.exitcode for process in started]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def compare(one: Path, other: Path) -> None:
    """Compare the values of every step, the predictions and the final weights."""
    expected, found = result(one), result(other)
    assert found["values"].keys() == expected["values"].keys()
    assert found["values"] == pytest.approx(expected["values"], abs=1e-5)
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    assert (found["tokens"], found["steps"]) == (expected["tokens"], expected["steps"])
    assert found["best"] == pytest.approx(expected["best"], abs=1e-5)
    mine, theirs = (load_file(folder / "tensors.safetensors") for folder in (other, one))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(mine["outputs"], theirs["outputs"], atol=1e-5, rtol=0)


NO_DROPOUT = ["model.dropout=0"]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    for count in (0, 2):
        folder = tmp_path / str(count)
        assert set(together(count, folder, "bert_scratch", more=NO_DROPOUT)) == {0}
    compare(tmp_path / "0", tmp_path / "2")
    # The other rank came to the same, and wrote no checkpoint.
    assert result(tmp_path / "2" / "rank1") == result(tmp_path / "2")
    assert not list((tmp_path / "2" / "rank1").glob("checkpoint-*"))
