"""Implement `kinopoisk-ft doctor`, which checks this machine."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict

from kinopoisk_ft.checks.finding import Finding, format_error
from kinopoisk_ft.console import handle_errors

# Module and function of each section. Each module is imported separately, so that a package that
# cannot be imported breaks only one section.
SECTIONS = {
    "packages": ("machine", "check_packages"),
    "devices": ("machine", "check_devices"),
    "precision": ("machine", "check_precision"),
    "memory": ("machine", "check_memory"),
    "attention": ("attention", "check_attention"),
    "selective_scan": ("kernels", "check_scan"),
    "ssd": ("kernels", "check_ssd"),
    "causal_conv1d": ("kernels", "check_convolution"),
    "tracking": ("store_check", "check_store"),
}
REINSTALL = "make setup, or: pip install --editable ."


@handle_errors
def main(argv: list[str] | None = None) -> int:
    """Check this machine. Return 1 if something that a run needs does not work, else 0."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft doctor",
        description="Check this machine: package versions, devices, precision, kernels (each is "
        "compared with a reference and timed), caches and the MLflow store; print how to fix "
        "problems.",
        epilog="Exit code: 0 if everything that a run needs works, else 1. Optional parts may be "
        "missing.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    # Log records would repeat what the findings already contain.
    logging.getLogger("kinopoisk_ft").addHandler(logging.NullHandler())
    # By default, MLflow retries an unreachable server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    results = _run_checks(verbose=not options.json)
    failed = [
        f"{section}: {finding.name}"
        for section, findings in results.items()
        for finding in findings
        if finding.needed and finding.state != "ok"
    ]
    if options.json:
        sections = {name: [asdict(one) for one in findings] for name, findings in results.items()}
        print(json.dumps({"ok": not failed, "sections": sections}, ensure_ascii=False, indent=2))
    elif failed:
        print(f"\nneeded but not working: {', '.join(failed)}")
    else:
        print("\neverything that a run needs works")
    return 1 if failed else 0


def _run_checks(verbose: bool) -> dict[str, list[Finding]]:
    results: dict[str, list[Finding]] = {}
    for section in SECTIONS:
        if verbose:
            print(section, flush=True)
        results[section] = []
        # Some checks compile kernels, which takes seconds, so each finding is printed at once.
        for finding in run_section(section):
            results[section].append(finding)
            if verbose:
                print(format_finding(finding), flush=True)
    return results


def run_section(section: str) -> Iterator[Finding]:
    """Run the checks of a section and yield the findings; an exception becomes a finding."""
    module, function = SECTIONS[section]
    try:
        yield from getattr(importlib.import_module(f"kinopoisk_ft.checks.{module}"), function)()
    except Exception as error:
        yield Finding(section, "broken", format_error(error), needed=True, fix=REINSTALL)


def format_finding(finding: Finding) -> str:
    """Format a finding as one line. A fix follows on a second line."""
    line = f"  {finding.state:8} {finding.name:23} {finding.detail}"
    # The columns before the detail have a width of 35 characters.
    return f"{line}\n{'':35}to do: {finding.fix}" if finding.fix else line
