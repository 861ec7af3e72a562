"""Print one line for each finished job of a sweep, with the time that is left."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.sweeps.forecast import Expected, format_time, sum_seconds
from kinopoisk_ft.tracking.sweep import notes_folder

FORECAST = "forecast.json"


def write_forecast(expected: Sequence[Expected], sweep_dir: Path) -> None:
    """Save the forecast for the jobs, which may run in other processes."""
    file = notes_folder(sweep_dir) / FORECAST
    write_atomically(file, json.dumps([asdict(one) for one in expected]))


def read_forecast(sweep_dir: Path) -> list[Expected]:
    """Read the forecast of a sweep; [] if there is none, as in a search."""
    try:
        values = json.loads((notes_folder(sweep_dir) / FORECAST).read_text(encoding="utf-8"))
        return [Expected(**value) for value in values]
    except (OSError, ValueError, TypeError):
        return []


def quiet_console() -> None:
    """Show only warnings of the following job; run.log contains everything."""
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.WARNING)


def number_job(number: int, expected: Sequence[Expected]) -> str:
    """Return "3/5" for job 2 of 5; "3" if the number of jobs is unknown, as in a search."""
    return f"{number + 1}/{len(expected)}" if expected else str(number + 1)


def format_job(
    number: int,
    name: str,
    score: float | None,
    seconds: float,
    expected: Sequence[Expected],
    took: dict[int, float],
    same_as: str = "",
) -> str:
    """Return a line such as "3/5 bert + lora, seed 0: F1 0.921 in 50 s, about 2 min left".

    Args:
        number: number of the job, from 0.
        seconds: how long this job took.
        took: {number: seconds} of all jobs that have ended, to correct the forecast.
        same_as: id of the earlier run whose result the job uses; "" if the job has trained.
    """
    text = f"{number_job(number, expected)} {name}: "
    text += "finished" if score is None else f"test {HEADLINE} {score:.3f}"
    text += f" (skipped: identical to run {same_as})" if same_as else f" in {format_time(seconds)}"
    left = [one for i, one in enumerate(expected) if i not in took]
    guess = sum_seconds(left)
    # Jobs whose result existed already say nothing about the speed.
    trained = {i: expected[i].seconds or 0.0 for i in took if i < len(expected)}
    trained = {i: value for i, value in trained.items() if value}
    if left and guess and trained:
        speed = sum(took[i] for i in trained) / sum(trained.values())
        text += f", about {format_time(guess * speed)} left"
    return text
