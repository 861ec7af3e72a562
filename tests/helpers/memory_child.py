"""A training run in a process of its own that may take only so much memory."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from composing import compose_config
from hydra.utils import instantiate
from short_fit import Recorder
from transformers import BertConfig, BertForSequenceClassification

from kinopoisk_ft.training import memory as probe
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.device import peak_growth
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.state import State

ROWS, LENGTH = 32, 512
SIZES = {
    "vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 512, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def train(limit: int | None, probes: bool, folder: Path, answers: Any) -> None:
    """Train two steps with `limit` MiB more than are taken; tells what was chosen and measured."""
    torch.set_num_threads(1)
    _fit(folder / "warm", 2, 8)  # loads libraries and starts threads, whose room is counted too
    told = _watch(limit, probes)
    if limit is not None:
        space = psutil.Process().memory_info().vms + limit * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
    state, recorder = _fit(folder / "run", 2 * ROWS, LENGTH)
    losses = recorder.of("train_loss")
    answers.put({**told, "rows": state.micro_batch_size, "loss": losses})


def _fit(folder: Path, count: int, length: int) -> tuple[State, Recorder]:
    made = instantiate(compose_config([
        "model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu", "trainer.epochs=1",
        f"trainer.batch_size={ROWS}", "trainer.log_every=1",
    ]).trainer)  # fmt: skip
    precision, clock = made.open()
    model = BertForSequenceClassification(BertConfig(**SIZES))
    rng = np.random.default_rng(0)
    data = Examples(rng.integers(1, 1000, (count, length)).tolist(), rng.integers(0, 2, count))
    recorder = Recorder()
    state = made.fit(
        model, Classification(0), data, Examples(data.input_ids[:2], data.labels[:2]), fresh=(),
        audit=lambda _: None, precision=precision, clock=clock, recorder=recorder, folder=folder,
    )  # fmt: skip
    return state, recorder


def _watch(limit: int | None, probes: bool) -> dict[str, float]:
    """Note failures for lack of memory, the prediction, and, without a limit, what was taken."""
    told: dict[str, float] = {"failures": 0}
    measure = probe._measure

    def watched(state: State, train: Examples) -> probe.Need:
        need = measure(state, train)
        told["predicted"] = need.of(ROWS) / 2**20
        if limit is None:
            taken = peak_growth(lambda: probe.forward_and_back(state, state.model, train, ROWS))
            told["growth"] = (taken + probe._count_optimizer_bytes(state)) / 2**20
            told["kept"] = probe._count_saved_bytes(state, train) * ROWS / 2**20
        return need

    class Failures(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told["failures"] += "memory ran out" in record.getMessage()

    logging.getLogger("kinopoisk_ft").addHandler(Failures())
    probe._measure = watched
    probe.AT_ONCE = 2**40 if probes else 0  # nothing passes for plenty, or all does
    return told
