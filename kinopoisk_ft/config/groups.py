"""Find the folder of the config groups, and list the options of each group."""

from __future__ import annotations

from pathlib import Path

from kinopoisk_ft.files import PACKAGE

# Beginnings of comments that are meant for Hydra or for editors.
_MACHINE_COMMENTS = ("# @package", "# yaml-language-server:")


def get_conf_dir() -> Path:
    """Return the folder that contains the config groups.

    An installed package contains this folder. In the repository, the folder is next to the package.
    """
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def list_options(folder: Path) -> dict[str, dict[str, str]]:
    """Return {group: {option: description}} for the config groups in a folder.

    The description is the first comment in the YAML file of the option.
    """
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        group = file.parent.relative_to(folder).as_posix()
        # Main configs are in `folder` itself. Files such as _base.yaml contain shared defaults.
        if group != "." and not file.name.startswith("_"):
            groups.setdefault(group, {})[file.stem] = _read_description(file)
    return groups


def _read_description(file: Path) -> str:
    # A user's own file that is not UTF-8 is refused when it is used; until then, it is only listed.
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("#") and not line.startswith(_MACHINE_COMMENTS):
            return line.lstrip("# ")
    return ""
