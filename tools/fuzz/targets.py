"""List what is fuzzed, and the files of the package that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_readers import predictions, tables, texts
from model_readers import base_models, checkpoints, model_folders
from mutations import Check
from run_readers import configs, event_logs


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Args:
        prepare: makes valid originals in a folder, and returns the check of one input.
        modules: files of the package whose lines are counted.
        seconds: CPU time that one input may take.
    """

    prepare: Callable[[Path], Check]
    modules: tuple[str, ...]
    seconds: float = 10.0


TARGETS: dict[str, Target] = {
    "tables": Target(tables, ("data/tables.py", "data/formats.py", "data/local.py",
                              "data/cleaning.py", "data/prediction_files.py")),
    "configs": Target(configs, ("config/validate.py", "config/command.py", "config/prepared.py",
                                "config/trust.py", "config/help.py")),
    "model_folders": Target(model_folders, ("models/card.py", "models/saving.py",
                                            "models/untrusted.py", "models/tfidf.py",
                                            "serving/predictor.py")),
    "checkpoints": Target(checkpoints, ("training/checkpoint/folder.py",
                                        "training/checkpoint/contents.py",
                                        "training/checkpoint/best.py",
                                        "training/checkpoint/manager.py")),
    "event_logs": Target(event_logs, ("tracking/event_log.py", "tracking/replay.py",
                                      "tracking/sync_runs.py")),
    "predictions": Target(predictions, ("commands/compare.py", "statistics/predictions.py",
                                        "statistics/comparison.py")),
    "base_models": Target(base_models, ("models/tokenizers.py", "models/checkpoints.py",
                                        "models/untrusted.py", "models/encoder.py",
                                        "models/mamba_recipe.py")),
    "texts": Target(texts, ("text.py", "data/cleaning.py", "data/preprocessing.py",
                            "data/windows.py", "data/written_grades.py", "data/tokens.py")),
}  # fmt: skip
