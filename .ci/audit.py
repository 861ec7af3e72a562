"""Check the pinned packages for known vulnerabilities and for their licences (`make audit`).

Exit codes: 1 for a vulnerability or a licence that is not in the list; 3 if the advisories could
not be read. Licences are read from the installed packages, so they are always checked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageMetadata, distributions
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
UNKNOWN = 3
# Permissive licences require that copies keep their notice; this project distributes no copies.
PERMISSIVE = {
    "mit", "mit license", "mit-0", "mit-cmu", "bsd", "bsd license", "3-clause bsd license",
    "bsd-2-clause", "bsd-3-clause", "0bsd", "apache-2.0", "apache 2.0", "apache 2.0 license",
    "apache software license", "apache license", "isc", "isc license (iscl)", "psf-2.0",
    "python software foundation license", "cnri-python", "zlib", "cc0-1.0", "bsl-1.0",
    "llvm-exception",
}  # fmt: skip
# Weak copyleft licences require that changes of their own files are published. These packages are
# used unchanged. The one under the LGPL belongs to the extra 'postgresql'.
FILES = {"mpl-2.0", "mozilla public license 2.0 (mpl 2.0)", "lgpl-3.0-only"}
# The metadata of these packages names no licence; these are from their LICENSE files.
READ = {"atheris": "Apache-2.0", "huey": "MIT", "skops": "MIT"}


def licence(metadata: PackageMetadata) -> str:
    """Return the licence in a package's metadata: expression, classifiers or License field."""
    if name := READ.get(metadata["Name"].lower()):
        return name
    stated = metadata.get("License-Expression")
    classifiers = metadata.get_all("Classifier") or []
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]
    first = (metadata.get("License") or "").strip().partition("\n")[0]
    return stated or " OR ".join(named) or first or "none stated"


def allowed(expression: str) -> bool:
    """Check whether one alternative of a licence expression has only licences of the list."""
    known = PERMISSIVE | FILES
    if expression.lower() in known:
        return True
    plain = re.sub(r"[()]", " ", expression)
    return any(
        all(
            part.strip().lower() in known
            for part in re.split(r"\s+(?:AND|WITH)\s+", one, flags=re.IGNORECASE)
        )
        for one in re.split(r"\s+OR\s+", plain, flags=re.IGNORECASE)
    )


def pinned(text: str) -> set[str]:
    """Return the normalized package names in a constraints file."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {_canonical(line.partition("==")[0]) for line in lines if line}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def refused(packages: Iterable[PackageMetadata], names: set[str]) -> list[str]:
    """Return a line for each pinned package whose licence is not in the list."""
    found = {m["Name"]: licence(m) for m in packages if _canonical(m["Name"]) in names}
    return [f"{name}: {text}" for name, text in sorted(found.items()) if not allowed(text)]


def advisories() -> dict[str, Any] | None:
    """Ask the index for the advisories of each pinned version; None if it does not answer."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps",
               "--disable-pip", "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        print("\n".join(done.stderr.strip().splitlines()[-1:]), file=sys.stderr)
        return None
    return found


def judge(found: dict[str, Any] | None, unlicensed: list[str]) -> tuple[int, list[str]]:
    """Return the exit code and what to print."""
    packages = found["dependencies"] if found else []
    skipped = [package for package in packages if "skip_reason" in package]
    lines = [
        f"VULNERABLE {package['name']} {package['version']}: {flaw['id']}, "
        f"fixed in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    lines += [f"LICENCE {line}" for line in unlicensed]
    code = 1 if lines else 0
    looked_up = len(packages) - len(skipped)
    lines.append(f"advisories: {looked_up} of {len(packages)} packages looked up")
    if not looked_up:
        lines.append("NOT AUDITED: the index with the advisories cannot be reached")
    return code or (UNKNOWN if not looked_up else 0), lines


def main() -> int:
    """Check vulnerabilities and licences; return the exit code."""
    names = pinned(CONSTRAINTS.read_text(encoding="utf-8"))
    unlicensed = refused((d.metadata for d in distributions()), names)
    code, lines = judge(advisories(), unlicensed)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
