"""Where the config groups are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """Return the folder of the groups: inside the package in a wheel, else beside it."""
    inside = _PACKAGE / "conf"
    return inside if inside.is_dir() else _PACKAGE.parent / "conf"


def group_options(folder: Path) -> dict[str, dict[str, str]]:
    """Return group → option → its one-line description (the first plain comment of the file)."""
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        group = file.parent.relative_to(folder).as_posix()
        if group != "." and not file.name.startswith("_"):
            groups.setdefault(group, {})[file.stem] = _description(file)
    return groups


def _description(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""
