"""What a finished run says: one object, printed as a table and written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kinopoisk_ft.whole_file import write_whole


@dataclass(frozen=True)
class Result:
    """The result of one run; times in seconds, memory in MiB.

    `objective` is the validation score that a sweeper maximises, or the loss that it minimises;
    scores are on the test set, None for pretraining.
    """

    accuracy: float | None
    f1_weighted: float | None
    f1_macro: float | None
    train_seconds: float
    eval_seconds: float
    trainable_parameters: int
    total_parameters: int
    run_id: str
    model_dir: str
    objective: float

    def table(self) -> str:
        """Return the result as aligned lines."""
        shown = {k: v for k, v in asdict(self).items() if v not in (None, "") and k != "objective"}
        width = max(len(key) for key in shown)
        return "\n".join(f"  {key:<{width}}  {_format(value)}" for key, value in shown.items())

    def write(self, file: Path) -> None:
        """Write one JSON object."""
        fields = {k: v for k, v in asdict(self).items() if k != "objective"}
        write_whole(file, json.dumps(fields, indent=2) + "\n")


def _format(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
