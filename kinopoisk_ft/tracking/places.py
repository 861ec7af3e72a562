"""Where a recorded file is, written so that a run's folder may move to another machine."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def portable(path: Path, folder: Path) -> str:
    """Return a path as `run:…` in a run's folder, or `package:…` in this package.

    Raises:
        ValueError: it is in neither, and would not be found on another machine.
    """
    for name, root in (("run", folder), ("package", PACKAGE)):
        if path.resolve().is_relative_to(root.resolve()):
            return f"{name}:{path.resolve().relative_to(root.resolve()).as_posix()}"
    raise ValueError(f"{path} is not in the run's folder {folder}")


def located(text: str, folder: Path) -> Path:
    """Return the file that `portable` wrote down.

    Raises:
        ValueError: it leads out of its root: the run may come from somebody else.
    """
    name, _, inner = text.partition(":")
    root = {"run": folder, "package": PACKAGE}.get(name, folder).resolve()
    path = (root / (inner or text)).resolve()
    inside = (one.resolve() for one in path.rglob("*") if one.is_symlink())
    if not all(one.is_relative_to(root) for one in (path, *inside)):
        raise ValueError(f"'{text}' leads out of the run's folder")
    return path
