"""Define the result of a run, print it as a table and write it as JSON."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from kinopoisk_ft.data.leakage import Overlap
from kinopoisk_ft.data.preprocessing import TextCoverage
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.statistics.metrics import COUNTED, HEADLINE
from kinopoisk_ft.text import hide_password
from kinopoisk_ft.tracking.event_log import OFFLINE


@dataclass(frozen=True)
class Result:
    """The result of one run; times are in seconds.

    Args:
        scores: test scores by metric name; empty for pretraining.
        objective: best validation value of `trainer.best_metric`.
        warning: why the scores must not be compared with those of other runs; "" if they may be.
        majority: weighted F1 of a classifier that always predicts the majority class. The table
            shows it, but it is not saved.
    """

    scores: dict[str, float]
    train_seconds: float
    eval_seconds: float
    trainable_parameters: int
    total_parameters: int
    run_id: str
    model_dir: str
    objective: float
    warning: str = ""
    # Not compared, because `as_json` leaves it out: a result that is read again stays equal.
    majority: float | None = field(default=None, compare=False)

    @classmethod
    def read(cls, text: str) -> Result:
        """Parse the JSON text that `as_json` returned."""
        values = json.loads(text)
        names = {field.name for field in fields(cls)}
        # All keys that are not fields are metrics, so that metrics of other versions are read, too.
        scores = {key: v for key, v in values.items() if key not in names and v is not None}
        return cls(scores=scores, **{key: v for key, v in values.items() if key in names})

    def as_json(self) -> str:
        """Return a flat JSON object; a metric that was not measured is null."""
        return json.dumps(self._flat())

    def table(self, experiment: str, uri: str | None) -> str:
        """Format the result as aligned lines, followed by the warning and the next steps.

        Args:
            experiment: the MLflow experiment of the run.
            uri: the store of the run; None for the default store.
        """
        shown = {k: v for k, v in self._reported().items() if v not in (None, "")}
        names = {k: f"test {k}" if k in self.scores else k.replace("_", " ") for k in shown}
        width = max(map(len, names.values()))
        lines = []
        for key, value in shown.items():
            line = f"  {names[key]:<{width}}  {_format_value(value)}"
            if key == HEADLINE and self.majority is not None:
                line += f"  (always predicting the majority class: {self.majority:.4f})"
            lines.append(line)
        if self.warning:
            lines.append(self.warning)
        if self.scores:
            # Quoted, so that a name with spaces can be copied to a shell.
            folder = shlex.quote(self.model_dir)
            lines.append(f'classify: kinopoisk-ft predict {folder} "your text"')
            # The report contains only runs in a store. With tracking=none, the id is empty.
            if self.run_id and not self.run_id.startswith(OFFLINE):
                line = f"compare:  kinopoisk-ft report --experiment {shlex.quote(experiment)}"
                lines.append(f"{line} --uri {shlex.quote(hide_password(uri))}" if uri else line)
        return "\n".join(lines)

    def write(self, file: Path) -> None:
        """Write the result to a file as one JSON object."""
        write_atomically(file, json.dumps(self._reported(), indent=2) + "\n")

    def _reported(self) -> dict[str, object]:
        # Sweeps need these two, and read them from the text of `as_json`.
        return {k: v for k, v in self._flat().items() if k not in ("objective", "warning")}

    def _flat(self) -> dict[str, object]:
        rest = asdict(self)
        del rest["scores"], rest["majority"]
        return {metric.name: self.scores.get(metric.name) for metric in COUNTED} | rest


def _format_value(value: object) -> str:
    if isinstance(value, float):
        # Scores get four decimals, and large numbers, such as seconds, get one.
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@dataclass
class Fitted:
    """The predictions and measurements of a trained model.

    Args:
        test_probabilities: (N, classes), in the order of the test rows.
        val_probabilities: (N, classes), in the order of the validation rows.
        objective: best validation value of `trainer.best_metric`.
        seconds: {section of the run: duration}.
        train_tokens: tokens of all training batches, without padding; 0 for TF-IDF.
        peak_memory_mb: peak memory in MiB; NaN if unknown.
        truncated: {"val" or "test": fraction of each review that truncation removed, (N,)}.
        pretraining_overlap: how many test reviews are in the pretraining texts; None if unknown.
        history: logged losses and validation metrics; each entry has a `step`.
        head_was_fitted: whether the output layer was already fitted at the start of training, by
            trainer.head_first or in a checkpoint that left no weights to initialize.
    """

    test_probabilities: np.ndarray
    val_probabilities: np.ndarray
    test_loss: float
    objective: float
    trainable_parameters: int
    total_parameters: int
    seconds: dict[str, float]
    train_tokens: int
    peak_memory_mb: float
    device: str
    precision: str
    seen: TextCoverage
    truncated: dict[str, np.ndarray]
    pretraining_overlap: Overlap | None
    history: list[dict[str, float]] = field(default_factory=list)
    head_was_fitted: bool = False
