"""Start several training processes."""

from __future__ import annotations

from typing import Any

from forks import CHILDREN
from torch.distributed import TCPStore

NO_DROPOUT = ["model.dropout=0"]
FSDP = "trainer.strategy=fsdp"


def started(target: Any, count: int, *args: Any) -> list[int | None]:
    """Run a function in `count` processes (0: in one without torchrun); return the exit codes."""
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
