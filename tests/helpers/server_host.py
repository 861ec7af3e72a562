"""Serve MLflow with PostgreSQL on a host of a test, and read its database."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hosts import Host, wait_until

# PostgreSQL refuses to run as root.
USER = "nobody"
PORT = 5000
# Seconds to wait for the start of a server on a busy machine.
PATIENCE = 900


class TrackingServer:
    """An MLflow server and its database.

    Args:
        here: the folder of the artifacts.
        database: the folder of the database, which belongs to another user.
    """

    def __init__(self, host: Host, here: Path, database: Path) -> None:
        self.host, self.here, self.folder = host, here, database
        self.uri = f"http://{host.address}:{PORT}"

    def start_database(self) -> None:
        """Start PostgreSQL, and wait until it answers."""
        data = self.folder / "data"
        self._database = self.host.start(
            self.folder, "postgres", "-D", data, "-k", self.folder, "-F", user=USER
        )
        wait_until(self._answers, PATIENCE, self.host.output(self.folder))

    def stop_database(self) -> None:
        """Stop PostgreSQL, which closes all connections."""
        self._database.send_signal(signal.SIGINT)
        self._database.wait(PATIENCE)

    def start_mlflow(self) -> None:
        """Start the server without waiting for it."""
        self._mlflow = self.host.start(
            self.here, sys.executable, "-m", "mlflow", "server", "--workers=1",
            "--host=0.0.0.0", f"--port={PORT}",
            "--backend-store-uri=postgresql://mlflow@127.0.0.1/postgres",
            f"--artifacts-destination={self.here / 'artifacts'}",
        )  # fmt: skip

    def stop_mlflow(self) -> None:
        """Kill the server with its workers, in the middle of a request if there is one."""
        self.host.kill("mlflow")
        self._mlflow.wait(PATIENCE)

    def query(self, text: str) -> list[Any]:
        """Return the rows of a query. Network namespaces do not separate Unix sockets."""
        import psycopg

        with psycopg.connect(host=str(self.folder), user="mlflow", dbname="postgres") as database:
            return database.execute(text).fetchall()

    def _answers(self) -> bool:
        import psycopg

        try:
            return bool(self.query("SELECT 1"))
        except psycopg.OperationalError:
            return False


@contextmanager
def serve_mlflow(host: Host, here: Path) -> Iterator[TrackingServer]:
    """Start a new database and a server; both end with the host."""
    with tempfile.TemporaryDirectory(prefix="kinopoisk_ft_pg_") as folder:
        shutil.chown(folder, USER)
        command = ["initdb", "-D", f"{folder}/data", "-U", "mlflow", "-A", "trust", "--no-sync"]
        subprocess.run(command, user=USER, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        server = TrackingServer(host, here, Path(folder))
        server.start_database()
        server.start_mlflow()
        yield server
        host.kill()
