"""Record a run in its event log, and send the log to MLflow during training."""

from __future__ import annotations

import logging
from pathlib import Path

from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.tracking.delivery import Delivery
from kinopoisk_ft.tracking.offline import OfflineTracker, sync_command
from kinopoisk_ft.tracking.replay import Replay, Target
from kinopoisk_ft.tracking.store import absolute_uri, find_experiment
from kinopoisk_ft.tracking.store_schema import REMOTE, UnreachableError, is_temporary

log = logging.getLogger(__name__)

# Seconds to wait until a remote or local store assigns the run's id. In a local SQLite store,
# MLflow may have to create the tables first.
START, START_LOCAL = 30.0, 120.0
# Seconds to send unsent events at the end. A process may be killed ten seconds after a stop signal.
END = {"FINISHED": 60.0, "FAILED": 10.0, "KILLED": 4.0}
# Lowest expected upload rate in bytes per second, which extends END for a run with a model.
MIN_RATE = 2**20


class MlflowTracker(OfflineTracker):
    """A tracker that sends its event log to MLflow in a background thread."""

    def find(self, tags: dict[str, str], folder: Path) -> dict[str, str] | None:
        """Find the experiment's newest finished run with the given tags.

        Returns:
            All tags of that run, or None if there is no such run. If the store does not answer, the
            result is also None, because repeating a finished run is better than failing.

        Raises:
            UserError: the store cannot be opened.
        """
        uri = absolute_uri(self.uri)
        terms = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        try:
            experiment = find_experiment(uri, self.experiment)
            if experiment is None:
                return None
            client, experiment_id = experiment
            found = client.search_runs(
                [experiment_id],
                " and ".join(["attributes.status = 'FINISHED'", *terms]),
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
        except (UnreachableError, MlflowException) as error:
            if isinstance(error, MlflowException) and not is_temporary(error, uri):
                raise
            text = "the MLflow store cannot be searched for finished runs: %s"
            log.warning(text, first_line(error))
            return None
        return dict(found[0].data.tags) if found else None

    def _assign_id(self) -> str:
        """Connect to the store, and return the run's id there.

        If the store does not answer in time, the result is the local id.

        Raises:
            UserError: the store cannot be opened, or does not contain the parent run.
        """
        target = Target(self.uri, self.experiment, self.artifacts)
        self._replay = Replay(self._log, target)
        self._delivery = Delivery(self._replay)
        seconds = START if absolute_uri(self.uri).partition(":")[0] in REMOTE else START_LOCAL
        answered = self._delivery.start(seconds)
        error = self._delivery.error
        if error is not None and self._delivery.needs_user():
            self._delivery.stop()
            self._stop_monitor()
            # Training does not start, so a new log would describe a run that never took place.
            if self._is_new:
                self._log.discard()
            else:
                self._log.close()
            raise error
        if error is not None or not answered:
            reason = first_line(error) if error else f"no answer in {seconds:.0f} s"
            log.warning("training starts without the MLflow store: %s", reason[:300])
        self._run_id = self._replay.run_id or self._log.local_id
        return self._run_id

    def get_uri(self) -> str | None:
        return absolute_uri(self.uri)

    def _send_rest(self, status: str) -> None:
        seconds = END[status] + (self._model_bytes() / MIN_RATE if status == "FINISHED" else 0)
        complete = self._delivery.close(seconds)
        state, command = self._log.state, sync_command(self._log.folder)
        # The store first answered after the start of training, or the run was deleted there.
        if state.run_id not in ("", self._run_id):
            log.debug("the id of this run in the MLflow store is %s", state.run_id)
        # `sync` can only send events that are on disk. `finish` reports the lost ones.
        if not complete and (unsent := len(self._log.after(state.seq)) - self._log.count_lost()):
            text = "%d events of this run are not in the MLflow store yet: %s; to send them: %s"
            log.warning(text, unsent, _get_reason(self._delivery.error), command)
        if state.refused:
            text = "not sent to the MLflow store: %s; to try again: %s"
            log.warning(text, "; ".join(state.refused.values())[:1000], command)

    def _model_bytes(self) -> int:
        files = (self._log.folder / "model").rglob("*") if self.log_model else ()
        return sum(file.stat().st_size for file in files if file.is_file())


def _get_reason(error: Exception | None) -> str:
    if error is None:
        return "it did not answer in time"
    if isinstance(error, UserError):
        return f"{error.what} (to do: {error.fix})"
    return first_line(error)[:300]
