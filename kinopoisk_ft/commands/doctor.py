"""`python -m kinopoisk_ft.doctor`: what works on this machine, how fast, and what would mend it."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict

from kinopoisk_ft.checks.finding import Finding, told
from kinopoisk_ft.console import guard_output

# Each is imported only when its turn comes: a package that cannot be imported spoils one section.
SECTIONS = {
    "packages": ("machine", "packages"),
    "devices": ("machine", "devices"),
    "precision": ("machine", "precision"),
    "memory": ("machine", "memory"),
    "attention": ("attention", "kernels"),
    "selective_scan": ("kernels", "scan"),
    "ssd": ("kernels", "duality"),
    "causal_conv1d": ("kernels", "convolution"),
    "tracking": ("store_check", "store"),
}
REINSTALL = "make setup, or: pip install --editable ."


@guard_output
def main(argv: list[str] | None = None) -> int:
    """Print what was found; returns 0, or 1 if something needed is broken or missing."""
    parser = argparse.ArgumentParser(
        prog="python -m kinopoisk_ft.doctor",
        description="Check this machine: devices, precision, kernels (each tested against its "
        "definition and timed), caches, the MLflow store, versions; and say what would mend them.",
        epilog="Exit code: 0 if all that a run needs works, else 1. Optional parts may be missing.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    # What the parts log of themselves is in the findings.
    logging.getLogger("kinopoisk_ft").addHandler(logging.NullHandler())
    # MLflow would try an unreachable server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    found = _look(aloud=not options.json)
    wrong = [
        f"{section}: {finding.name}"
        for section, findings in found.items()
        for finding in findings
        if finding.needed and finding.state != "ok"
    ]
    if options.json:
        sections = {name: [asdict(finding) for finding in found[name]] for name in found}
        print(json.dumps({"ok": not wrong, "sections": sections}, ensure_ascii=False, indent=2))
    else:
        print(f"\nneeded and not working: {', '.join(wrong)}" if wrong else "\nall needed works")
    return 1 if wrong else 0


def _look(aloud: bool) -> dict[str, list[Finding]]:
    """Go through the sections; aloud: print each finding as it comes."""
    found: dict[str, list[Finding]] = {}
    for section in SECTIONS:
        if aloud:
            print(section, flush=True)
        found[section] = []
        for finding in examine(section):
            found[section].append(finding)
            if aloud:
                print(as_text(finding), flush=True)
    return found


def examine(section: str) -> Iterator[Finding]:
    """Yield what the checks of a section find; a check that fails is itself a finding."""
    module, function = SECTIONS[section]
    try:
        yield from getattr(importlib.import_module(f"kinopoisk_ft.checks.{module}"), function)()
    except Exception as error:
        yield Finding(section, "broken", told(error), needed=True, fix=REINSTALL)


def as_text(finding: Finding) -> str:
    """Return a finding on a line, its remedy on another."""
    line = f"  {finding.state:8} {finding.name:23} {finding.detail}"
    return f"{line}\n{'':35}to do: {finding.fix}" if finding.fix else line
