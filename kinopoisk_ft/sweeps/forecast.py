"""Estimate how long the unfinished jobs of a sweep will take."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kinopoisk_ft.adapters.base import Adapter
from kinopoisk_ft.config.prepared import Prepared
from kinopoisk_ft.config.validate import prepare_composed
from kinopoisk_ft.console import silence_logs
from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.windows import Windows
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.provenance import IDENTITY, RESULT
from kinopoisk_ft.tasks.result import Result
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.tracking.offline import find_recorded
from kinopoisk_ft.tracking.sweep import FORECAST, notes_folder
from kinopoisk_ft.training.device import choose_device
from kinopoisk_ft.training.precision import DTYPES, choose_precision, synchronize
from kinopoisk_ft.training.settings import Settings

# 256 tokens of a Russian subword vocabulary hold about 900 characters of a review.
CHARACTERS_PER_TOKEN = 3.5
# FLOPs per weight and token, forward (Kaplan et al., 2020, https://arxiv.org/abs/2001.08361).
FORWARD = 2
# A training step reaches about this fraction of the speed of a matrix product; see
# benchmarks/results/profile-bert.md.
EFFICIENCY = 0.4
# Seconds to read the data, and to load and save a model.
START_SECONDS = 8
# Seconds that TF-IDF takes per character.
TFIDF_SECONDS = 1e-6
# `measure_rate` multiplies square matrices of this size for this number of seconds.
MATRIX, TIMED_SECONDS = 1024, 0.3


@dataclass(frozen=True)
class Expected:
    """The forecast for one job.

    Args:
        is_finished: whether the result already exists.
        seconds: estimated time on this machine; 0 if the job is finished, None if the size of the
            model is unknown.
    """

    approach: str
    is_finished: bool
    seconds: float | None


def forecast(jobs: Iterable[DictConfig], is_sweep: bool = True) -> list[Expected]:
    """Return the forecast for each job, in order.

    Args:
        is_sweep: whether the jobs belong to a sweep. A single run always trains, even if an
            identical run has finished.
    """
    found = []
    seen: set[str] = set()
    for job in jobs:
        prepared = prepare_composed(job)
        identity = prepared.tags[IDENTITY]
        # Of two identical jobs, the second one uses the result of the first.
        is_known = identity in seen or find_finished(prepared, Path(job.hydra.sweep.dir))
        is_finished = bool(is_known) and is_sweep and not job.rerun
        seen.add(identity)
        seconds = 0.0 if is_finished else estimate_seconds(prepared.cfg)
        found.append(Expected(prepared.label, is_finished, seconds))
    return found


def write_forecast(expected: Sequence[Expected], sweep_dir: Path) -> None:
    """Save the forecast to a file, because the jobs that read it may run in other processes."""
    file = notes_folder(sweep_dir) / FORECAST
    write_atomically(file, json.dumps([asdict(one) for one in expected]))


def read_forecast(sweep_dir: Path) -> list[Expected]:
    """Read the forecast of a sweep. Return [] if it has none; a search, for example, has none."""
    try:
        values = json.loads((notes_folder(sweep_dir) / FORECAST).read_text(encoding="utf-8"))
        return [Expected(**value) for value in values]
    except (OSError, ValueError, TypeError):
        return []


def find_finished(prepared: Prepared, folder: Path) -> Result | None:
    """Return the result of an identical training run that has finished, or None.

    Args:
        folder: folder whose event logs are searched, too.
    """
    if prepared.tags["kinopoisk_ft.kind"] != "train":
        return None
    tracker: Tracker = instantiate(prepared.cfg.tracking)
    wanted = {"kinopoisk_ft.kind": "train", IDENTITY: prepared.tags[IDENTITY]}
    # Runs that ended while the store did not answer are only in the event logs. A run that is
    # missing in the store although it was sent has been deleted there.
    found = tracker.find(wanted, folder) or find_recorded(folder, wanted, only_unsent=True)
    # A store may have refused the tag with the result, and then the job trains again.
    return Result.read(found[RESULT]) if found and RESULT in found else None


def estimate_seconds(cfg: DictConfig) -> float | None:
    """Estimate the seconds that a run takes on this machine; None if the model size is unknown."""
    texts = _read_lengths(OmegaConf.to_yaml(cfg.data))
    model = instantiate(cfg.model)
    if not model.is_network:
        characters = sum(int(part.sum()) for part in texts.values())
        return START_SECONDS + TFIDF_SECONDS * characters
    size = model.measure_layers()
    if size is None:
        return None
    trainer, adapter = instantiate(cfg.trainer), instantiate(cfg.adapter)
    if trainer.training_budget.unit == "seconds":
        return START_SECONDS + float(trainer.training_budget.amount)
    preprocessing = instantiate(cfg.data).preprocessing
    tokens = {name: count_tokens(part, preprocessing) for name, part in texts.items()}
    flops = count_flops(size, adapter, trainer, len(texts["train"]), tokens)
    device = choose_device(trainer.device)
    kind, _ = choose_precision(trainer.precision, device)
    return START_SECONDS + flops / (EFFICIENCY * measure_rate(device, kind))


def count_flops(
    size: tuple[int, int],
    adapter: Adapter,
    trainer: Settings,
    reviews: int,
    tokens: Mapping[str, float],
) -> float:
    """Return the FLOPs of training, evaluations and test in a run.

    Args:
        size: number of blocks, and total number of weights in these blocks.
        reviews: number of train reviews.
        tokens: {split: number of tokens, estimated by `count_tokens`}.
    """
    blocks, weights = size
    per_epoch = trainer.steps_per_epoch(reviews)
    steps = trainer.training_budget.count_steps(per_epoch)
    # A budget of tokens has no fixed number of steps, but gives the epochs directly.
    epochs = (
        trainer.training_budget.amount / tokens["train"] if steps is None else steps / per_epoch
    )
    every = per_epoch if trainer.eval_every == "epoch" else trainer.eval_every
    evaluations = math.ceil(epochs * per_epoch / every)
    # Tokens that pass through each block in training, and in the evaluations and the test.
    trained = epochs * tokens["train"]
    evaluated = evaluations * tokens["val"] + tokens["test"]
    # Fraction of the blocks without a backward pass. All blocks count as equally large.
    share = adapter.count_forward_blocks(blocks) / blocks
    # With the prefix cache, each text passes through these blocks once and not in every epoch.
    is_cached = trainer.prefix_cache != "off"
    below = sum(tokens.values()) if is_cached else trained + evaluated
    # Gradient checkpointing runs the forward pass of a block twice.
    again = FORWARD if trainer.gradient_checkpointing else 0
    above = (adapter.flops_per_weight + again) * trained + FORWARD * evaluated
    return weights * (share * FORWARD * below + (1 - share) * above)


def count_tokens(characters: np.ndarray, preprocessing: Preprocessing) -> float:
    """Estimate how many tokens a model reads from N texts, after truncation.

    Args:
        characters: (N,), the length of each text in characters.
    """
    limit = preprocessing.max_characters
    kept = characters if limit is None else np.minimum(characters, limit)
    # Most tokenizers add two special tokens.
    tokens = np.ceil(kept / CHARACTERS_PER_TOKEN) + 2
    if not preprocessing.reads_windows:
        return float(np.minimum(tokens, preprocessing.max_length).sum())
    # Each window has one special token on each side, such as [CLS] and [SEP].
    room, stride = max(1, preprocessing.max_length - 2), preprocessing.window_stride
    if stride is not None and stride <= preprocessing.max_length:
        # Other tokenizers, such as that of Mamba, add fewer tokens and allow a larger stride.
        stride = min(stride, room)
    windows = Windows.of(room, stride, preprocessing.max_windows, 1, 1)
    most = np.inf if windows.max_tokens is None else windows.max_tokens + 2
    return float(windows.count_tokens(np.minimum(tokens, most)).sum())


# The argument is YAML, because the key of a cache must be hashable.
@cache
def _read_lengths(data: str) -> dict[str, np.ndarray]:
    with silence_logs():
        split: DataSplit = instantiate(OmegaConf.create(data)).load()
    return {name: part["text"].str.len().to_numpy() for name, part in split.parts.items()}


@cache
def measure_rate(device: torch.device, kind: str) -> float:
    """Measure the speed of matrix products in the precision `kind`, in FLOP per second."""
    left = right = torch.ones(MATRIX, MATRIX, device=device, dtype=DTYPES[kind])
    products, started = 0, 0.0
    # The first product only warms up.
    while not products or time.perf_counter() - started < TIMED_SECONDS:
        torch.matmul(left, right)
        # A CUDA call returns before the product is finished.
        synchronize(device)
        started = started or time.perf_counter()
        products += 1
    # A product of two n x n matrices takes 2 n^3 FLOP: 2 n for each element of the result.
    return (products - 1) * 2 * MATRIX**3 / (time.perf_counter() - started)


def format_forecast(found: Sequence[Expected]) -> str:
    """Format a forecast as a table with one line for each approach, and one for all jobs."""
    groups = {one.approach: [other for other in found if other.approach == one.approach]
              for one in found}  # fmt: skip
    if len(groups) > 1:
        groups["all"] = list(found)
    lines = [f"{'approach':30} {'jobs':>5} {'finished':>9}  expected time"]
    for name, jobs in groups.items():
        finished = sum(one.is_finished for one in jobs)
        time_left = format_time(sum_seconds(jobs))
        lines.append(f"{name:30} {len(jobs):>5} {finished:>9}  {time_left}")
    lines.append("Times are estimates for this machine, with one job at a time.")
    return "\n".join(lines)


def sum_seconds(jobs: Iterable[Expected]) -> float | None:
    """Return the expected seconds of all jobs; None if the time of one is unknown."""
    seconds = [one.seconds for one in jobs]
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None


def format_time(seconds: float | None) -> str:
    """Format a number of seconds with the unit s, min or h."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
