"""How many trials a search tries at once: as many as its launcher runs jobs side by side."""

from __future__ import annotations

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig


def jobs_at_once(launcher: Launcher, options: DictConfig) -> int:
    """Return how many jobs the launcher runs side by side: it says so itself, or its options do."""
    if hasattr(launcher, "jobs_at_once"):
        return int(launcher.jobs_at_once())
    if "array_parallelism" in options:
        return int(options.array_parallelism)
    if "submitit_folder" in options:  # it starts all at once, whatever the machine has
        from joblib import cpu_count

        return max(1, cpu_count() // (options.cpus_per_task or 1))
    return 1
