"""Check which evaluation counts as the best."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from short_fit import Recorder

from kinopoisk_ft.training.monitor import Monitor
from kinopoisk_ft.training.progress import Progress

NAN = math.nan


@pytest.mark.parametrize(
    ("losses", "best"), [([NAN, NAN, NAN], 1), ([NAN, 0.5, NAN], 2), ([0.5, NAN, 0.4], 3)]
)
def test_nan_is_never_an_improvement(losses: list[float], best: int) -> None:
    kept: Any = SimpleNamespace(save=lambda *_: None)
    settings: Any = SimpleNamespace(best_metric="loss", max_bad_steps=10, min_steps=None)
    state: Any = SimpleNamespace(
        best=None, best_step=0, since_best=0, history=[], step=0, length="", model=None
    )
    with Progress(0, 3) as progress:
        monitor = Monitor(Recorder(), progress, kept, settings, 1)
        for state.step, loss in enumerate(losses, start=1):
            found: Any = SimpleNamespace(scores={"loss": loss}, outputs=None)
            monitor.log_evaluation(state, found)
    assert (state.best_step, state.since_best) == (best, 3 - best)
