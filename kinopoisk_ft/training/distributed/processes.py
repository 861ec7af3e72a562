"""Exchange values between the processes that train one model.

Only rank 0 records, prints and writes. All values except the tensors of `all_reduce_sum` are
exchanged on the CPU, so that the CPU does not have to wait for the GPU. In a single process, the
functions here do not communicate.
"""

from __future__ import annotations

import os
import re
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
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.training.device import choose_device
from kinopoisk_ft.training.distributed import torchrun

T = TypeVar("T")
# Seconds that a process waits for the others, by default. Rank 0 may have to download a model and
# tokenize all reviews while the others wait.
TIMEOUT = 3600
# Seconds between two checks whether all ranks have joined.
POLL = 0.02
# Rank 0 may have to write a last checkpoint while the others wait.
EXIT_TIMEOUT = timedelta(seconds=60)
START = "start the run with torchrun --nproc-per-node N -m kinopoisk_ft ..."


class MainRankError(UserError):
    """Raised on ranks other than 0 when rank 0 has failed. Rank 0 reports the reason."""

    def __init__(self) -> None:
        super().__init__("rank 0 failed; its message says why")


class SingleRankError(UserError):
    """Raised when one rank may have failed alone. This rank exits without waiting for others."""


def rank() -> int:
    """Return the rank of this process; 0 if it is the only process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is rank 0."""
    return rank() == 0


@contextmanager
def join_processes(strategy: str, device: str, seconds: int = TIMEOUT) -> Iterator[None]:
    """Create the process group of a run that torchrun started, and destroy the group on exit.

    As soon as one rank exits with an error, torchrun ends all ranks. If all ranks fail together,
    rank 0 still needs time to record the end of the run, so the other ranks do not exit before
    rank 0. A rank that fails alone exits at once.

    Args:
        seconds: how long a process waits for the others before the run fails.

    Raises:
        UserError: the strategy needs torchrun or does not allow torchrun, the device is missing,
            or another process does not answer.
    """
    if not torchrun.is_launched() or (strategy == "none" and torchrun.world_size() == 1):
        if strategy in ("ddp", "fsdp"):
            raise UserError(
                f"trainer.strategy={strategy} works only under torchrun",
                where="trainer.strategy",
                fix=f"{START}, or use trainer.strategy=auto",
            )
        yield
        return
    backend = _choose_backend(strategy, device)
    timeout = timedelta(seconds=seconds)
    # torchrun's environment variables give the address of the store, the rank and the world size.
    with explain_lost_connection():
        store, number, count = next(rendezvous("env://", timeout=timeout))
        store = _open_fresh_store(store, number, count, seconds)
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=timeout
        )
    together = True
    try:
        with explain_lost_connection():
            yield
    except BaseException as error:
        # All ranks raise these errors, except SingleRankError, at the same point of the run.
        joint = isinstance(error, UserError | KeyboardInterrupt)
        together = joint and not isinstance(error, SingleRankError)
        raise
    finally:
        if number == 0:
            # Rank 0 has recorded the end of the run before it leaves the `with` block.
            store.set("ended", "")
        elif together:
            # If rank 0 was killed, the wait fails after the timeout, and this rank exits as well.
            with suppress(RuntimeError):
                store.wait(["ended"], EXIT_TIMEOUT)
        if together:
            dist.destroy_process_group()


@contextmanager
def explain_lost_connection() -> Iterator[None]:
    """Convert an error of the connections between processes to a UserError."""
    try:
        yield
    except RuntimeError as error:
        # Gloo has no class of errors, but each of its messages names a file of its source code.
        if not isinstance(error, DistError) and "gloo" not in str(error).lower():
            raise
        raise SingleRankError(
            f"the connection to another process is lost: {_shorten(error)}",
            fix="read the messages of the other processes, and check the network between the "
            "machines; then run the same command again, which resumes from the last checkpoint",
        ) from error


def _shorten(error: RuntimeError) -> str:
    # Gloo's messages begin with a line of its source code, and may end with general advice.
    return re.sub(r"^\[\S+\] |\. This is typically .*", "", first_line(error))


def _open_fresh_store(store: Store, number: int, count: int, seconds: int) -> Store:
    # torchrun keeps the store when it restarts the processes. With the old keys, new processes
    # would wait forever for the addresses of ended processes. Rank 0 therefore draws a random
    # prefix, and the other ranks ask for the prefix. The restart count cannot be the prefix,
    # because machines may count differently.
    name = uuid.uuid4().hex
    if number:
        store.set(f"hello/{number}", name)
        chosen = store.get(f"answer/{name}").decode()
        store.set(f"{chosen}/joined/{number}", "")
        return PrefixStore(chosen, store)
    missing = set(range(1, count))
    end = time.monotonic() + seconds
    while missing:
        if time.monotonic() > end:
            raise SingleRankError(
                f"{len(missing)} of {count} processes did not start within {seconds} s",
                where="trainer.process_timeout",
                fix="read their messages, and check the network between the machines",
            )
        missing = {i for i in missing if not store.check([f"{name}/joined/{i}"])}
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", name)
        time.sleep(POLL)
    return PrefixStore(name, store)


def _choose_backend(strategy: str, request: str) -> str:
    if strategy == "none":
        raise UserError(
            f"torchrun started {torchrun.world_size()} processes, but trainer.strategy=none trains "
            "in one, so each process would train the same model and write to the same folder",
            where="trainer.strategy",
            fix="use trainer.strategy=auto, or start the run without torchrun",
        )
    device = choose_device(request).type
    if device == "cpu":
        return "gloo"
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device == "cuda" and local < gpus:
        # From here on, the device "cuda" means the GPU of this rank.
        torch.cuda.set_device(local)
        # Gloo exchanges tensors on the CPU, and NCCL tensors on GPUs.
        return "cpu:gloo,cuda:nccl"
    raise UserError(
        f"process {local + 1} on this machine has no device: "
        + (f"there are only {gpus} GPUs" if device == "cuda" else f"{device} allows one process"),
        where="trainer.device",
        fix=f"start one process for each GPU (torchrun --nproc-per-node {max(1, gpus)}), "
        "or use trainer.device=cpu",
    )


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Call `make` on rank 0, and return the result on every rank.

    Raises:
        MainRankError: on the other ranks, if `make` failed on rank 0.
    """
    if world_size() == 1:
        return make()
    reply: list[Any] = [False, None]
    if is_main():
        try:
            reply = [True, make()]
        except BaseException:
            # Otherwise, the other ranks would wait for the reply until TIMEOUT. If they cannot be
            # reached, the error of `make` is still the one to raise.
            with suppress(RuntimeError):
                dist.broadcast_object_list(reply)
            raise
    dist.broadcast_object_list(reply)
    if not reply[0]:
        raise MainRankError
    made: T = reply[1]
    return made


@contextmanager
def main_first() -> Iterator[None]:
    """Run a `with` block first on rank 0, which downloads files, and then on the other ranks."""
    if world_size() == 1:
        yield
    elif is_main():
        try:
            yield
        # The value tells the other ranks whether the block has succeeded.
        except BaseException:
            with suppress(RuntimeError):
                broadcast(False)
            raise
        broadcast(True)
    else:
        if not broadcast(False):
            raise MainRankError
        yield


def broadcast(value: float) -> float:
    """Return the value of rank 0 on every rank."""
    if world_size() == 1:
        return value
    # float64 is the type of Python's floats, so the value stays exactly the same.
    box = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(box, 0)
    return box.item()


def all_reduce_max(value: int) -> int:
    """Return the maximum over all ranks, on every rank."""
    if world_size() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box.item())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks in place; the result is bitwise identical on every rank."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_equal(value: object) -> bool:
    """Return whether all ranks have the same value."""
    return world_size() == 1 or not all_reduce_max(int(broadcast_from_main(lambda: value) != value))


def shard_batch(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Select the rows of a batch for this rank.

    If there are fewer rows than ranks, a rank without a row gets the first row, because all ranks
    must take part in each step. This extra row does not count in the loss.

    Returns:
        The rows, and whether they count in the loss.
    """
    first, step = rank(), world_size()
    if step == 1:
        return batch, True
    # Batches are sorted by length, so every n-th row gives all ranks about as many tokens.
    mine = {key: value[first::step] for key, value in batch.items()}
    if all(len(value) for value in mine.values()):
        return mine, True
    return {key: value[:1] for key, value in batch.items()}, False


def broadcast_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of rank 0 on every rank.

    With several ranks, the tensors are on the CPU.
    """
    specs = broadcast_from_main(lambda: [(n, tuple(v.shape), v.dtype) for n, v in tensors.items()])
    for name, shape, dtype in specs:
        if world_size() == 1:
            yield name, tensors[name]
            continue
        value = tensors[name].cpu().contiguous() if is_main() else torch.empty(shape, dtype=dtype)
        # Tensors are sent as bytes, because Gloo does not support all dtypes, for example int16.
        if value.numel():
            dist.broadcast(value.reshape(-1).view(torch.uint8), 0)
        yield name, value


def seed_rank(seed: int, step: int) -> None:
    """Seed PyTorch's random generators, except on rank 0.

    The seed depends on the rank and the optimizer step. A checkpoint therefore needs only the
    random state of rank 0, and a run can resume with another number of ranks.
    """
    if not is_main():
        # SeedSequence mixes the numbers, so adjacent ranks and steps have unrelated seeds.
        entropy = np.random.SeedSequence([seed, rank(), step])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
