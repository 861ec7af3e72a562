"""Several processes, one run: who they are, and what they tell one another.

Rank 0 alone records, prints and writes; it downloads and tokenizes before the others do. All that
they agree on goes by the CPU (gloo), so that no step waits for a GPU; gradients go by their own
device. Without torchrun every function here does nothing and costs nothing.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kinopoisk_ft import ranks
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.device import choose_device

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # rank 0 may have a model to download and reviews to tokenize
POLL = 0.02  # seconds between two looks for who has come
END = timedelta(seconds=60)  # rank 0 may have a checkpoint to write
START = "start it with torchrun --nproc-per-node N -m kinopoisk_ft ..."


class MainRankError(UserError):
    """Rank 0 could not go on, and says itself why."""

    def __init__(self) -> None:
        super().__init__("rank 0 could not go on; its own message says why")


class AloneError(UserError):
    """One process of several cannot go on, and the others are waiting for its part of a step."""


def rank() -> int:
    """Return the number of this process in the run, 0 for one of its own."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the process that records, prints and writes."""
    return rank() == 0


@contextmanager
def processes(strategy: str, device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did, for the length of a run.

    Ranks other than 0 leave after it, so that torchrun, which ends all when one has failed, leaves
    rank 0 the time to record the end. One that fails alone leaves at once: the others notice.

    Raises:
        UserError: the strategy does not fit how the process was started, or the device is missing.
    """
    if not ranks.launched() or (strategy == "none" and ranks.size() == 1):
        if strategy in ("ddp", "fsdp"):
            raise UserError(
                f"trainer.strategy={strategy} is for processes that torchrun starts",
                where="trainer.strategy",
                fix=f"{START}, or use trainer.strategy=auto",
            )
        yield
        return
    backend = _backend(strategy, device)
    store, number, count = next(rendezvous("env://"))
    store = _of_this_start(store, number, count)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    together = True
    try:
        yield
    except BaseException as error:
        joint = isinstance(error, UserError | KeyboardInterrupt)
        together = joint and not isinstance(error, AloneError)
        raise
    finally:
        if number == 0:
            store.set("ended", "")
        elif together:
            with suppress(RuntimeError):
                store.wait(["ended"], END)
        if together:
            dist.destroy_process_group()


def _of_this_start(store: Store, number: int, count: int) -> Store:
    """Return a part of torchrun's store in which no earlier process has written.

    The store outlives a restart with what processes left there that are gone: met again, their
    addresses make the new ones wait for ever. Machines may count restarts differently, so rank 0
    gives a name that nobody has had, in answer to such names of the others.
    """
    name = uuid.uuid4().hex
    if number:
        store.set(f"hello/{number}", name)
        chosen = store.get(f"answer/{name}").decode()
        store.set(f"{chosen}/joined/{number}", "")
        return PrefixStore(chosen, store)
    missing = set(range(1, count))
    while missing:
        missing = {i for i in missing if not store.check([f"{name}/joined/{i}"])}
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", name)
        time.sleep(POLL)
    return PrefixStore(name, store)


def _backend(strategy: str, request: str) -> str:
    """Return the backends of a device, and make the process's own GPU the one `cuda` means."""
    if strategy == "none":
        raise UserError(
            f"torchrun started {ranks.size()} processes, and trainer.strategy=none trains in "
            "one: each would do the same and write to the same places",
            where="trainer.strategy",
            fix="use trainer.strategy=auto, or start without torchrun",
        )
    device = choose_device(request).type
    if device == "cpu":
        return "gloo"
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device == "cuda" and local < gpus:
        torch.cuda.set_device(local)
        return "cpu:gloo,cuda:nccl"
    raise UserError(
        f"process {local + 1} of this machine has no device of its own: "
        + (f"there are {gpus} GPUs" if device == "cuda" else f"{device} serves one process"),
        where="trainer.device",
        fix=f"start as many processes as there are GPUs (--nproc-per-node {max(1, gpus)}), "
        "or use trainer.device=cpu",
    )


def from_main(make: Callable[[], T]) -> T:
    """Return, on every rank, what rank 0 makes; MainRankError on the others where it could not."""
    if size() == 1:
        return make()
    told: list[Any] = [False, None]
    if is_main():
        try:
            told = [True, make()]
        except BaseException:
            with suppress(RuntimeError):
                dist.broadcast_object_list(told)
            raise
    dist.broadcast_object_list(told)
    if not told[0]:
        raise MainRankError
    made: T = told[1]
    return made


@contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 do what is inside before the others, who then find what it has downloaded."""
    if size() == 1:
        yield
    elif is_main():
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):
                told(False)
            raise
        told(True)
    else:
        if not told(False):
            raise MainRankError
        yield


def told(value: float) -> float:
    """Return rank 0's number on every rank."""
    if size() == 1:
        return value
    box = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(box, 0)
    return box.item()


def largest(value: int) -> int:
    """Return the largest of the ranks' numbers, on every rank."""
    if size() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box.item())


def summed(tensor: Tensor) -> Tensor:
    """Add up, in place, the ranks' tensors of one shape; the sum has the same bits on each."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def alike(value: object) -> bool:
    """Return whether all ranks have the same value."""
    return size() == 1 or not largest(int(from_main(lambda: value) != value))


def share(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Return this rank's rows of a batch that every rank has: one in `size()`.

    A rank for which there is none gets another's row, since all must take part in what the
    processes do together, and False: it is not to count.
    """
    first, step = rank(), size()
    if step == 1:
        return batch, True
    mine = {key: value[first::step] for key, value in batch.items()}
    if all(len(value) for value in mine.values()):
        return mine, True
    return {key: value[:1] for key, value in batch.items()}, False


def spread(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield rank 0's tensors on every rank, one at a time, on the CPU where they were sent."""
    kinds = from_main(lambda: [(n, tuple(v.shape), v.dtype) for n, v in tensors.items()])
    for name, shape, dtype in kinds:
        if size() == 1:
            yield name, tensors[name]
            continue
        value = tensors[name].cpu().contiguous() if is_main() else torch.empty(shape, dtype=dtype)
        if value.numel():
            dist.broadcast(value.reshape(-1).view(torch.uint8), 0)
        yield name, value


def draw_apart(seed: int, step: int) -> None:
    """Give ranks other than 0 random numbers of their own, which seed, rank and step determine.

    So a checkpoint holds those of rank 0 alone, whatever the number of ranks that go on from it.
    """
    if not is_main():
        entropy = np.random.SeedSequence([seed, rank(), step])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
