"""Implement `kinopoisk-ft ui`, which opens the MLflow UI for the store of this folder."""

from __future__ import annotations

import argparse
import subprocess
import sys

from kinopoisk_ft.console import handle_errors
from kinopoisk_ft.text import hide_password


@handle_errors
def main(argv: list[str] | None = None) -> int:
    """Run the MLflow UI until it is interrupted, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft ui", description="Open the MLflow UI, which compares runs in a browser."
    )
    parser.add_argument(
        "--uri", help="MLflow store (default: MLFLOW_TRACKING_URI, or else ./mlflow.db)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine")
    parser.add_argument("--port", default="5000", help="default: %(default)s")
    args = parser.parse_args(argv)
    from kinopoisk_ft.tracking.store import absolute_uri, ensure_store

    uri = absolute_uri(args.uri)
    # MLflow's UI opens only databases and folders.
    if uri.startswith(("http://", "https://")):
        print(f"open {hide_password(uri)} in a browser: this server shows its own UI")
        return 0
    # MLflow does not create a store atomically, so an interruption could leave an incomplete one.
    ensure_store(uri)
    # The last part of the address selects the menu for model training.
    address = f"http://{args.host}:{args.port}/#/experiments?workflowType=machine_learning"
    print(f"{address} shows {hide_password(uri)}; press Ctrl-C to stop", flush=True)
    # The script `mlflow` may be missing from PATH, for example in an inactive environment.
    command = [
        *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri),
        *("--host", args.host, "--port", args.port),
    ]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        # The terminal also sends Ctrl-C to the server, so this is the usual way to stop it.
        return 0
