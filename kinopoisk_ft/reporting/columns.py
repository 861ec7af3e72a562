"""The columns of a report's tables, and the metrics of a run behind them."""

from __future__ import annotations

# Column of the table → metric of the run.
COLUMNS = {
    "accuracy": "test_accuracy",
    "f1_weighted": "test_f1_weighted",
    "f1_macro": "test_f1_macro",
    "train_seconds": "train_seconds",
    "eval_seconds": "eval_seconds",
    "trainable_parameters": "trainable_parameters",
    "total_parameters": "total_parameters",
    "peak_memory_mb": "peak_memory_mb",
    "tokens_per_second": "tokens_per_second",
    "characters_seen_share": "characters_seen_share",
    "temperature": "temperature",
    "ece": "test_ece",
    "ece_calibrated": "test_ece_calibrated",
    "brier": "test_brier",
    "brier_calibrated": "test_brier_calibrated",
    "nll": "test_nll",
    "nll_calibrated": "test_nll_calibrated",
    "threshold": "threshold",
    "accuracy_threshold": "test_accuracy_threshold",
    "f1_weighted_threshold": "test_f1_weighted_threshold",
}
# Column → what a run from cached states of its frozen layers owes to the run that made them.
OWED = {"train_seconds": "prefix_build_seconds", "eval_seconds": "prefix_test_build_seconds"}
# What every run should have recorded; a note names what is missing.
EXPECTED = (
    "accuracy", "f1_weighted", "f1_macro", "train_seconds", "eval_seconds",
    "trainable_parameters", "total_parameters",
)  # fmt: skip
MAJORITY_COLUMNS = {name: f"majority_{name}" for name in ("accuracy", "f1_weighted", "f1_macro")}
# Column → the better of two values; these are marked and differenced.
BEST = {"accuracy": max, "f1_weighted": max, "train_seconds": min}
MARKS = {"min_time": "train_seconds", "best_accuracy": "accuracy", "best_f1": "f1_weighted"}
