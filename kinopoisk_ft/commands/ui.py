"""Implement `kinopoisk-ft ui`, which opens the MLflow UI for the store of this folder."""

from __future__ import annotations

import argparse
import subprocess
import sys

from kinopoisk_ft.console import guard_output


@guard_output
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
    from kinopoisk_ft.tracking.store import default_uri

    uri = args.uri or default_uri()
    print(f"http://{args.host}:{args.port} shows {uri}; press Ctrl-C to stop", flush=True)
    command = [
        *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri),
        *("--host", args.host, "--port", args.port),
    ]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 0
