"""Train in a separate process with limited memory."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from composing import change_config
from hydra.utils import instantiate
from short_fit import Recorder
from transformers import BertConfig, BertForSequenceClassification

from kinopoisk_ft.training import loop, memory
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.device import peak_memory_mb, reset_peak_memory
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.state import State

CPU = torch.device("cpu")
ROWS, LENGTH = 32, 512
SIZES = {
    "vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 512, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def train(
    limit: int | None, predicts: bool, folder: Path, answers: Any, recomputes: str = "false"
) -> None:
    """Train two steps with `limit` MiB more than are in use; return the micro-batch and figures."""
    torch.set_num_threads(1)
    # This loads libraries and starts threads, whose memory is part of the size before training.
    _fit(folder / "warm", 2, 8)
    told = _watch(limit, predicts)
    if limit is not None:
        space = psutil.Process().memory_info().vms + limit * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
    state, recorder = _fit(folder / "run", 2 * ROWS, LENGTH, recomputes)
    losses = recorder.of("train_loss")
    answers.put({**told, "rows": state.micro_batch_size, "loss": losses})


def _fit(
    folder: Path, count: int, length: int, recomputes: str = "false"
) -> tuple[State, Recorder]:
    made = instantiate(change_config([
        "model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu", "trainer.epochs=1",
        f"trainer.batch_size={ROWS}", "trainer.log_every=1",
        f"trainer.gradient_checkpointing={recomputes}",
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


def _watch(limit: int | None, predicts: bool) -> dict[str, float]:
    """Count out-of-memory failures; without a limit, measure the predicted and the used MiB."""
    told: dict[str, float] = {"failures": 0}
    fit_rows = memory.fit_rows_to_memory

    def watched(state: State, train: Examples) -> int:
        if limit is None:
            row = memory.PEAK_FACTOR * memory._count_saved_bytes(state, train)
            told["predicted"] = row * ROWS / 2**20
            reset_peak_memory(CPU)
            before = peak_memory_mb(CPU)
            state.precision.backward(memory.run_longest(state, state.model, train, ROWS))
            told["growth"] = peak_memory_mb(CPU) - before
            state.optimizer.zero_grad(set_to_none=True)
        return fit_rows(state, train) if predicts else state.micro_batch_size

    class Failures(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told["failures"] += "memory ran out" in record.getMessage()

    logging.getLogger("kinopoisk_ft").addHandler(Failures())
    loop.fit_rows_to_memory = watched
    return told
