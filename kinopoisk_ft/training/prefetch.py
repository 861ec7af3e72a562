"""Make the next batches while the device is at work on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
DEPTH = 2  # one waiting and one in the making; more would only hold memory


class _Failure:
    """What the maker raised, on its way to who waits."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


@contextmanager
def prefetched(items: Iterable[T], depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """Iterate over `items` with up to `depth` made ahead by a thread, in their order.

    What making an item raises is raised where it would have been handed over. On leaving, the
    thread has ended, items not taken are dropped, and a generator among `items` is closed.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        source = iter(items)
        last: object = _END
        try:
            for item in source:
                if not put(item):
                    break
        except BaseException as error:
            last = _Failure(error)
        finally:
            if hasattr(source, "close"):
                source.close()
        put(last)

    maker = threading.Thread(target=make, name="batches", daemon=True)
    maker.start()
    try:
        yield _taken(ready)
    finally:
        stop.set()
        maker.join()


def _taken(ready: queue.Queue[Any]) -> Iterator[Any]:
    while True:
        item = ready.get()
        if item is _END:
            return
        if isinstance(item, _Failure):
            raise item.error
        yield item
