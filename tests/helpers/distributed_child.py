"""Train in one of several processes, as torchrun would start them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from composing import compose_config
from hydra.utils import instantiate
from networks import NAMES, adapter_overrides, model_overrides
from resume_child import command, ended
from safetensors.torch import save_file

from kinopoisk_ft.adapters.audit import check_gradients
from kinopoisk_ft.cli import main
from kinopoisk_ft.console import silence_libraries
from kinopoisk_ft.tasks.pretrain import make_language_model
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.distributed.processes import is_main, join_processes, rank, world_size
from kinopoisk_ft.training.distributed.sharding import gather_model
from kinopoisk_ft.training.objective import Classification, compute_balanced_weights

# 31 reviews in batches of 5: the last batch has one row, so most ranks have none of it.
SETTINGS = [
    "trainer.precision=fp32", "trainer.device=cpu", "trainer.batch_size=5", "trainer.accumulate=2",
    "trainer.epochs=2", "trainer.lr=0.01", "trainer.log_every=1", "trainer.eval_every=3",
    "trainer.eval_batch_size=4", "trainer.checkpoint_every=2",
]  # fmt: skip
TRAIN, VAL = 31, 9


def environment(number: int, count: int, port: int) -> dict[str, str]:
    """Return the environment variables that torchrun would set for a process."""
    return {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip


class Values:
    """A recorder of all values by step and name, which fails after a step on request."""

    def __init__(self, last: int | None) -> None:
        self.last, self.values = last, {}

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.values |= {f"{step} {key}": value for key, value in values.items()}
        if step == self.last:
            raise RuntimeError("power cut")

    def flush(self) -> None:
        """Do nothing, because nothing is buffered."""


def member(
    number: int, count: int, port: int, folder: Path, kind: str, adapter: str,
    more: Sequence[str], last: int | None = None,
) -> None:  # fmt: skip
    """Train and test as one of `count` processes; 0: in a single process without torchrun."""
    torch.set_num_threads(1)
    # As in a run. Warnings would go to a file that pytest has closed.
    silence_libraries()
    if count:
        os.environ.update(environment(number, count, port))
    cfg = compose_config(
        [*model_overrides(kind), *adapter_overrides(adapter.replace("pretrain", "none")),
         *SETTINGS, *more]
    )  # fmt: skip
    with join_processes(cfg.trainer.strategy, cfg.trainer.device):
        assert (rank(), world_size()) == (number, max(1, count))
        # Only rank 0 reads and writes, so the folders of the other ranks do not exist.
        _train(cfg, folder if is_main() else folder / f"rank{rank()}", adapter == "pretrain", last)


def _train(cfg: Any, folder: Path, pretrains: bool, last: int | None) -> None:
    recipe, trainer = instantiate(cfg.model), instantiate(cfg.trainer)
    precision, clock = trainer.open(folder)
    tokenizer = recipe.load_tokenizer(tiny.reviews(64)[0])
    parts = {}
    for name, rows, seed in (("train", TRAIN, 0), ("val", VAL, 1)):
        texts, labels = tiny.reviews(rows, seed)
        found = None if pretrains else np.array(labels)
        parts[name] = Examples(tokenizer(texts)["input_ids"], found)
    fresh: set[str] = set()
    if pretrains:
        module, objective = (
            recipe.build_lm(tokenizer).module,
            make_language_model(tokenizer, 0.15, trainer.loss),
        )
    else:
        adapted = instantiate(cfg.adapter).apply(recipe.build(NAMES, tokenizer))
        module, fresh = adapted.module, adapted.fresh
        weights = None
        if trainer.class_weights == "balanced":
            weights = compute_balanced_weights(np.array([0, 1, 1]), 2)
        objective = Classification(tokenizer.pad_token_id, weights=weights)
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Values(last)
    state = trainer.fit(
        module, objective, parts["train"], parts["val"], fresh=fresh, audit=check_gradients,
        precision=precision, clock=clock, recorder=recorder, folder=folder, about={"data": "tiny"},
    )  # fmt: skip
    tested = trainer.test(module, objective, parts["val"], precision)
    gather_model(module)
    result = {"values": recorder.values, "tokens": state.tokens, "steps": state.step,
              "best": [state.best, state.best_step], "scores": tested.scores}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    named = {name: p.detach().contiguous() for name, p in module.named_parameters()}
    # The outputs of a language model are sums over each process's rows, which nothing reads.
    outputs = {} if pretrains else {"outputs": tested.outputs}
    save_file({**named, **outputs}, folder / "tensors.safetensors")


def command_member(
    number: int, count: int, port: int, args: Sequence[str], here: Path,
    signalled: int | None = None,
) -> None:  # fmt: skip
    """Run the command line as one of several processes; one of them may get a SIGTERM."""
    if count:
        os.environ.update(environment(number, count, port))
    place = here / f"rank{number}"
    place.mkdir(exist_ok=True)
    command(args, place, ("backward", 7) if number == signalled else None)


# torchrun starts this file. Rank 1 is killed once, in its fourth update.
if __name__ == "__main__":
    dies = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    with ended("update", 4, signal.SIGKILL) if dies else nullcontext():
        sys.exit(main(sys.argv[1:]))
