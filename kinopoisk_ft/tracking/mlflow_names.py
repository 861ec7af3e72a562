"""Translate the names of metrics and parameters to MLflow names and back.

Event logs, result.json and the report use flat names, such as `test_loss` and `train_seconds`. In
MLflow, the part before a slash is a group, which the MLflow UI can fold: `test/loss`,
`time/train_seconds`. Runs of earlier versions have flat names in MLflow, too.
"""

from __future__ import annotations

from collections.abc import Mapping

# The names of these groups replace the prefix of a metric: `test_loss` is `test/loss`.
PREFIXED = ("test", "val", "train", "majority", "leakage")
# All other metrics keep their whole name after the slash.
GROUPS = {
    "train": (
        "lr", "epoch", "grad_norm", "micro_batch_size", "skipped_steps", "loss_spikes",
        "tuning_trials",
    ),
    "data": ("train_reviews", "characters_seen_share", "tokens_seen_share", "characters_per_token"),
    "model": ("trainable_parameters", "total_parameters"),
    "calibration": ("temperature", "threshold"),
    "time": ("tokens_per_second",),
    # The MLflow UI shows metrics of this group on a separate tab.
    "system": ("peak_memory_mb",),
}  # fmt: skip
SECONDS = "_seconds"
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
# Config keys that tell Hydra how to call an object.
HYDRA_KEYS = ("_partial_", "_convert_", "_recursive_")
TARGET = "_target_"


def to_mlflow(name: str) -> str:
    """Return the MLflow name of a metric; a metric of an unknown kind keeps its name."""
    prefix, _, rest = name.partition("_")
    if name in GROUP_OF:
        return f"{GROUP_OF[name]}/{name}"
    # A name that has its group already, such as "time/train_seconds", does not change.
    if name.endswith(SECONDS) and "/" not in name:
        return f"time/{name}"
    # PREFIXED comes last, because `train_reviews` and `train_seconds` belong to other groups.
    return f"{prefix}/{rest}" if prefix in PREFIXED and rest else name


def from_mlflow(key: str) -> str:
    """Convert an MLflow name, such as "test/accuracy", to the flat name, such as "test_accuracy".

    A name without a group is returned unchanged.
    """
    group, _, rest = key.partition("/")
    # `to_mlflow` adds only one slash, so this project did not choose a name with two.
    if not rest or "/" in rest:
        return key
    if GROUP_OF.get(rest) == group or (group == "time" and rest.endswith(SECONDS)):
        return rest
    return f"{group}_{rest}" if group in PREFIXED else key


def flat_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Return {flat name: value} for the metrics of an MLflow run, sorted by name."""
    return dict(sorted((from_mlflow(key), value) for key, value in values.items()))


def readable_params(values: Mapping[str, str]) -> dict[str, str]:
    """Remove Hydra's own keys from the params of a run.

    `trainer.schedule._target_=kinopoisk_ft.training.schedule.cosine` becomes
    `trainer.schedule=cosine`. A target in another package keeps its full name.
    """
    readable = {}
    for key, value in values.items():
        parent, _, last = key.rpartition(".")
        if last == TARGET and parent:
            package, _, name = value.rpartition(".")
            readable[parent] = name if package.startswith("kinopoisk_ft.") else value
        elif last not in HYDRA_KEYS:
            readable[key] = value
    return readable


def has_flat_names(metrics: Mapping[str, float], params: Mapping[str, str]) -> bool:
    """Return whether an earlier version of this project logged these values to MLflow.

    Earlier versions logged flat names of metrics, and Hydra's own keys as params.
    """
    return any(to_mlflow(key) != key for key in metrics) or any(
        key.rpartition(".")[2] in (*HYDRA_KEYS, TARGET) for key in params
    )
