"""Train in a separate process, which a signal ends at a chosen moment."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from composing import change_config
from hydra.utils import instantiate
from networks import NAMES, adapter_overrides, model_overrides

from kinopoisk_ft.adapters.audit import check_gradients
from kinopoisk_ft.cli import main
from kinopoisk_ft.models.card import Card
from kinopoisk_ft.prefix_cache.cache import PrefixCache
from kinopoisk_ft.run_folder import RunFolder
from kinopoisk_ft.tasks.pretrain import make_language_model
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.mlflow import MlflowTracker
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision

# Where a run can be ended: the owner and the name of a function.
PLACES: dict[str, tuple[Any, str]] = {
    "backward": (Precision, "backward"),
    "update": (Precision, "step"),
    "between": (Trainer, "_log_if_due"),
    "evaluation": (Classification, "scores"),
    "fsync": (os, "fsync"),
    "rename": (os, "replace"),
    # After training: the weights of the model folder are written, its card is not; the scores and
    # pictures are, the result is not; and the store has it all.
    "card": (Card, "write"),
    "result": (Result, "write"),
    "finish": (MlflowTracker, "finish"),
    "end": (RunFolder, "mark_finished"),
}
SETTINGS = [
    "trainer.precision=fp32", "trainer.device=cpu", "trainer.batch_size=4", "trainer.accumulate=2",
    "trainer.epochs=2", "trainer.lr=0.01", "trainer.log_every=2", "trainer.eval_every=3",
    "trainer.checkpoint_every=2",
]  # fmt: skip


def moments(seed: int, count: int) -> list[tuple[str, int]]:
    """Draw places in training, each in turn, with the number of the call."""
    rng = np.random.default_rng(seed)
    most = {"backward": 16, "update": 6, "between": 6, "evaluation": 2, "fsync": 15, "rename": 4}
    names = [name for _ in range(-(-count // len(most))) for name in rng.permutation([*most])]
    return [(name, int(rng.integers(1, most[name] + 1))) for name in names[:count]]


@contextmanager
def ended(place: str, call: int, number: int) -> Iterator[None]:
    """Send this process a signal at the n-th call of the function at a place."""
    owner, name = PLACES[place]
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(owner, name, counted)
    try:
        yield
    finally:
        setattr(owner, name, function)


class Lines:
    """A recorder that writes each value and batch at once, because the process may be killed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.write({"step": step, **values})

    def write(self, line: dict[str, Any]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Do nothing, because nothing is buffered."""


def train(
    folder: Path, kind: str, adapter: str, more: Sequence[str], moment: tuple[str, int] | None,
    number: int = signal.SIGKILL,
) -> None:  # fmt: skip
    """Train; write lines.jsonl, and at the end result.json with a digest of the weights."""
    torch.set_num_threads(1)
    os.environ["KINOPOISK_FT_CACHE"] = str(folder.parent / "cache")
    with ended(*moment, number) if moment else nullcontext():
        _train(folder, kind, adapter, more)


def _train(folder: Path, kind: str, adapter: str, more: Sequence[str]) -> None:
    pretrains = adapter == "pretrain"
    overrides = [*model_overrides(kind), *adapter_overrides("none" if pretrains else adapter)]
    loss = ["trainer.best_metric=loss"] if pretrains else []
    cfg = change_config([*overrides, *SETTINGS, *loss, *more])
    recipe, trainer = instantiate(cfg.model), instantiate(cfg.trainer)
    precision, clock = trainer.open(folder)
    tokenizer = recipe.load_tokenizer(tiny.reviews(64)[0])
    parts: dict[str, Any] = {}
    for name, count, seed in (("train", 34, 0), ("val", 8, 1)):
        texts, labels = tiny.reviews(count, seed)
        parts[name] = Examples(tokenizer(texts)["input_ids"], np.array(labels))
    fresh: set[str] = set()
    if pretrains:
        network = recipe.build_lm(tokenizer)
        module, objective = network.module, make_language_model(tokenizer, 0.15, trainer.loss)
        parts = {name: Examples(part.input_ids) for name, part in parts.items()}
    else:
        network = recipe.build(NAMES, tokenizer)
        adapted = instantiate(cfg.adapter).apply(network)
        module, fresh = adapted.module, adapted.fresh
        objective = Classification(tokenizer.pad_token_id)
        if trainer.prefix_cache != "off":
            cache = PrefixCache(trainer.prefix_cache, tokenizer.pad_token_id, precision, 8)
            cached = cache.apply(network, module, parts)
            objective, parts = cached.make_objective(), dict(cached.parts)
    folder.mkdir(parents=True, exist_ok=True)
    lines, step = Lines(folder / "lines.jsonl"), trainer._step

    def told(state: Any, micro_batches: list[dict[str, Any]], audit: Any) -> None:
        step(state, micro_batches, audit)
        served = digest(value for batch in micro_batches for value in batch.values())
        loss = state.losses[-1].item().hex()
        lines.write({"step": state.step, "served": served, "loss": loss})

    trainer._step = told
    state = trainer.fit(
        module, objective, parts["train"], parts["val"], fresh=fresh, audit=check_gradients,
        precision=precision, clock=clock, recorder=lines, folder=folder, about={"data": "tiny"},
    )  # fmt: skip
    weights = digest(value for _, value in sorted(module.state_dict().items()))
    found = {"weights": weights, "history": state.history, "tokens": state.tokens,
             "best": [state.best, state.best_step], "scale": precision.state_dict(),
             "outputs": digest([state.best_outputs])}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(found))


def digest(tensors: Any) -> str:
    """Return a digest of the bits of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def command(
    args: Sequence[str], here: Path, moment: tuple[str, int] | None, number: int = signal.SIGTERM
) -> None:
    """Run the command line in a folder, with a signal at the moment."""
    # A shell ignores SIGINT for commands in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.chdir(here)
    os.environ["KINOPOISK_FT_CACHE"] = str(here / "cache")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with (
        (here / "stderr.txt").open("w") as told,
        redirect_stderr(told),
        ended(*moment, number) if moment else nullcontext(),
    ):
        sys.exit(main([*args]))


def slow_command(args: Sequence[str], here: Path, seconds: float) -> None:
    """Run the command line with slow steps; started.txt gets a line when a step begins."""
    step = Trainer._step

    def slow(*given: Any) -> None:
        with (here / "started.txt").open("a") as stream:
            stream.write("a step\n")
        time.sleep(seconds)
        step(*given)

    Trainer._step = slow  # type: ignore[method-assign]
    command(args, here, None)
