"""MLflow as a tracker: what a run tells is written to its folder and sent while it goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.courier import Courier
from kinopoisk_ft.tracking.delivery import Delivery, Target
from kinopoisk_ft.tracking.experiment import absolute_uri, open_experiment
from kinopoisk_ft.tracking.offline import OfflineTracker, sync_command
from kinopoisk_ft.tracking.store import REMOTE, UnreachableError, may_pass

log = logging.getLogger(__name__)

# Seconds in which a store has to answer for the run to get its id from it: a server, and a local
# file, which always answers in the end, but whose tables may have to be made first.
START, START_LOCAL = 30.0, 120.0
# Seconds for what is left at the end: a signal leaves ten, of which a step may take two.
END = {"FINISHED": 60.0, "FAILED": 10.0, "KILLED": 4.0}
SLOWEST = 2**20  # bytes a second in which a model is to be taken


class MlflowTracker(OfflineTracker):
    """An offline tracker with a courier: no error or delay of the store reaches the training."""

    def find(self, tags: dict[str, str]) -> dict[str, str] | None:
        """Return all tags of the newest finished run of the experiment that has these ones.

        None, with a warning, if the store gives no answer: a job is rather trained than lost.

        Raises:
            UserError: the store cannot be opened.
        """
        terms = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        try:
            client, experiment_id = open_experiment(self.uri, self.experiment, self.artifacts)
            found = client.search_runs(
                [experiment_id],
                " and ".join(["attributes.status = 'FINISHED'", *terms]),
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
        except (UnreachableError, MlflowException) as error:
            if isinstance(error, MlflowException) and not may_pass(error, absolute_uri(self.uri)):
                raise
            log.warning("finished runs are not known: %s", str(error).splitlines()[0])
            return None
        return dict(found[0].data.tags) if found else None

    def start(
        self,
        name: str,
        config: dict[str, Any],
        tags: dict[str, str],
        parent: str | None = None,
        kept: str | None = None,
        *,
        folder: Path,
    ) -> str:
        """Open a run, as a child of `parent`, or go on with one; offline if no store answers.

        Raises:
            UserError: the store cannot be opened, or does not have the parent.
        """
        self._courier: Courier | None = None
        local_id = super().start(name, config, tags, parent, kept, folder=folder)
        target = Target(self.uri, self.experiment, self.artifacts)
        self._delivery = Delivery(self._events, target)
        self._courier = Courier(self._delivery.step)
        seconds = START if absolute_uri(self.uri).partition(":")[0] in REMOTE else START_LOCAL
        answered = self._courier.start(seconds)
        trouble = self._courier.trouble
        if isinstance(trouble, UserError) and not isinstance(trouble, UnreachableError):
            self._courier.stop()
            (self._events.discard if self._is_new else self._events.close)()
            raise trouble
        if trouble is not None or not answered:
            reason = str(trouble).splitlines()[0] if trouble else f"no answer in {seconds:.0f} s"
            log.warning("training begins without the MLflow store: %s", reason[:300])
        self._told = self._delivery.sent.run_id or local_id
        return self._told

    def _address(self) -> str | None:
        return absolute_uri(self.uri)

    def _tell(self, verb: str, **content: Any) -> None:
        super()._tell(verb, **content)
        if self._courier is not None:
            self._courier.wake()

    def finish(self, status: str) -> None:
        """Note the run's end, and wait for a while until the store has all."""
        self._tell("finish", status=status)
        assert self._courier is not None
        seconds = END[status] + (self._model_bytes() / SLOWEST if status == "FINISHED" else 0)
        delivered = self._courier.close(seconds)
        if (given := self._delivery.sent.run_id) not in ("", self._told):
            log.info("in the MLflow store this run is %s", given)
        if not delivered and (left := self._delivery.left()):
            text = "%d of this run's events are not in the MLflow store yet: %s; to send them: %s"
            cause = _cause(self._courier.trouble)
            log.warning(text, left, cause, sync_command(self._events.folder))
        self._events.tell_losses(self._delivery.sent.seq)
        if refused := self._delivery.sent.refused:
            text = "the MLflow store does not have: %s; to try again: %s"
            told = "; ".join(refused.values())[:1000]
            log.warning(text, told, sync_command(self._events.folder))
        self._events.close()

    def _model_bytes(self) -> int:
        files = (self._events.folder / "model").rglob("*") if self.log_model else ()
        return sum(file.stat().st_size for file in files if file.is_file())


def _cause(trouble: Exception | None) -> str:
    """Return on one line why a store takes nothing, and what the user can do about it."""
    if trouble is None:
        return "it has not answered in time"
    if isinstance(trouble, UserError):
        return f"{trouble.what} (to do: {trouble.fix})"
    return next(iter(str(trouble).splitlines()), type(trouble).__name__)[:300]
