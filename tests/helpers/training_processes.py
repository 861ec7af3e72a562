"""What the tests of several processes share: the server that they are forks of, and their start."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from typing import Any

import pytest
from torch.distributed import TCPStore

CHILDREN = multiprocessing.get_context("forkserver")
NO_DROPOUT = ["model.dropout=0"]
FSDP = "trainer.strategy=fsdp"


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    """Start the process that children are forks of: it imports once what they all need."""
    CHILDREN.set_forkserver_preload(["distributed_child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def started(target: Any, count: int, *args: Any) -> list[int | None]:
    """Run a function in so many processes, 0: in one without torchrun; returns exit codes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    members = [
        CHILDREN.Process(target=target, args=(number, count, store.port, *args))
        for number in range(max(1, count))
    ]
    for process in members:
        process.start()
    for process in members:
        process.join(100)
    return [process.exitcode for process in members]
