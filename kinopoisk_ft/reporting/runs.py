"""What a report knows of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

BASELINE = "tfidf"  # the model that is no network


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """One finished training run; `settings` are the parameters that make its recipe."""

    run_id: str
    approach: str
    model: str
    adapter: str
    seed: str
    data: str
    split_digest: str
    source_digest: str
    device: str
    commit: str
    start_time: int  # ms since 1970
    settings: dict[str, str]
    metrics: dict[str, float]
    experiment: str = ""  # the chosen file of conf/experiment
    overrides: str = ""  # of the command line
    command: str = ""  # that repeats it
    precision: str = ""
    parent: str = ""  # run id of its sweep
    not_above_majority: str = ""  # the parts, test and validation, where it does not beat it
    searched: str = ""  # "trial" of a search, "experiment=best" for what one chose

    @property
    def max_length(self) -> str:
        """Return the tokens of context, or "" where a run has none (TF-IDF)."""
        return self.settings.get("data.max_length", "") if self.model != BASELINE else ""


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A run without a result.

    `kind` is "raised", "killed", "no_traceback" or "incomplete"; `detail` is the exception's own
    line, or the names of what is missing.
    """

    run_id: str
    approach: str
    seed: str
    kind: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a report is made of; `superseded` and `unfinished` count the runs left out."""

    experiment: str
    runs: list[TrainedRun]
    failed: list[FailedRun] = field(default_factory=list)
    superseded: int = 0
    unfinished: int = 0
