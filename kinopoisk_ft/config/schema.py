"""Build JSON schemas of the config groups. Editors use them to complete and check config files.

    python -m kinopoisk_ft.config.schema

writes one schema for each group to conf/schema. Names and types come from the signatures that
`validate` also uses. Descriptions come from the comments in the config files.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.utils import get_object
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.config.validate import GROUPS, SETTINGS, get_type_hints

# The schema of conf/train.yaml, and of experiments and sweeps, which may set every key.
MAIN = "train"
# In a config file, any value may be an interpolation, or ??? if it is required.
INTERPOLATION = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
# A null seed is replaced by a random one before the config is checked.
WRITTEN_SETTINGS = {**SETTINGS, "seed": int | None}
# A line of YAML: indentation, key, and the comment behind the value.
KEY_LINE = re.compile(r"^( *)([\w.]+):(?:.*?\s#\s+(.*))?")

Schema = dict[str, Any]


def build_schemas() -> dict[str, Schema]:
    """Return {name: JSON schema} for the main config and for each group.

    The name of a nested group such as trainer/loss is "trainer_loss".
    """
    conf = get_conf_dir()
    groups = {folder for folder in conf.rglob("*") if [*folder.glob("*.yaml")]}
    names = {folder.relative_to(conf).as_posix(): folder for folder in sorted(groups)}
    schemas = {
        name.replace("/", "_"): _make_header() | _describe_node(*read_group(folder))
        for name, folder in names.items()
        # Files of these two groups may set every key, so they use the main schema.
        if name not in ("experiment", "sweep")
    }
    return {MAIN: _describe_main(conf)} | schemas


def write_schemas(folder: Path) -> None:
    """Write each schema to <folder>/<name>.json."""
    folder.mkdir(exist_ok=True)
    for name, schema in build_schemas().items():
        text = json.dumps(schema, indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def read_comments(file: Path) -> dict[str, str]:
    """Return {dotted key: comment} for a YAML file.

    The comment stands in the lines above the key, behind the value, or both. The first comment of a
    file describes the file and belongs to no key.
    """
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip("# "))
        elif match := KEY_LINE.match(line):
            indent, key, behind = len(match[1]), match[2], match[3]
            # A key is nested only in keys with a smaller indentation.
            parents = [(depth, name) for depth, name in parents if depth < indent]
            path = ".".join([*(name for _, name in parents), key])
            found[path] = " ".join([*(above if found else []), *([behind] if behind else [])])
            parents.append((indent, key))
            above = []
    return {path: comment for path, comment in found.items() if comment}


def read_group(folder: Path) -> tuple[list[Schema], dict[str, str]]:
    """Return the files of a group as dicts, and the comments of all of their keys.

    A nested group, such as trainer/loss, is a key of the group.
    """
    files = sorted(folder.glob("*.yaml"))
    nodes = [cast(Schema, OmegaConf.to_container(OmegaConf.load(file))) for file in files]
    comments: dict[str, str] = {}
    for file in files:
        # If several files describe a key, the description of the first file is used.
        comments = read_comments(file) | comments
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        inner_nodes, inner_comments = read_group(inner)
        nodes += [{inner.name: node} for node in inner_nodes]
        comments |= {f"{inner.name}.{key}": text for key, text in inner_comments.items()}
    return nodes, comments


def _describe_main(conf: Path) -> Schema:
    comments = read_comments(conf / f"{MAIN}.yaml")
    properties = {key: _describe_type(hint) for key, hint in WRITTEN_SETTINGS.items()}
    for key, schema in properties.items():
        schema["description"] = comments.get(key, "")
    properties |= {group: {"$ref": f"{group}.json"} for group in GROUPS}
    # Hydra reads these two keys of a config file itself.
    properties |= {"defaults": {"type": "array"}, "hydra": {"type": "object"}}
    return {**_make_header(), "properties": properties, "additionalProperties": False}


def _make_header() -> Schema:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"interpolation": INTERPOLATION},
        "type": "object",
    }


def _describe_node(nodes: Sequence[Schema], comments: dict[str, str]) -> Schema:
    """Return the schema of a config node.

    Args:
        nodes: the values of this node in the files of the group.
    """
    targets = sorted({node["_target_"] for node in nodes if "_target_" in node})
    if not targets:
        # Launchers belong to plugins of Hydra, which checks their options itself.
        keys = {key for node in nodes for key in node}
        return {"properties": {key: _comment({}, comments.get(key)) for key in sorted(keys)}}
    # A file without `_target_` inherits one from its defaults.
    own = [_describe_target(target, nodes, comments) for target in targets]
    # Classes that the user wrote may have any options.
    other = {"required": ["_target_"], "properties": {"_target_": {"not": {"enum": targets}}}}
    return {"type": "object", "anyOf": [*own, other]}


def _describe_target(target: str, nodes: Sequence[Schema], comments: dict[str, str]) -> Schema:
    value = get_object(target)
    parameters = inspect.signature(value).parameters
    # Other packages may accept values that their annotations do not mention.
    hints = get_type_hints(value) if target.startswith("kinopoisk_ft.") else {}
    properties: Schema = {
        "defaults": {"type": "array"},
        "_target_": {"const": target},
        "_partial_": {"type": "boolean"},
        "_recursive_": {"type": "boolean"},
        "_convert_": {"enum": ["none", "partial", "object", "all"]},
    }
    for name in parameters:
        inner = [node[name] for node in nodes if isinstance(node.get(name), dict)]
        if any("_target_" in node for node in inner):
            prefix = f"{name}."
            deeper = {k[len(prefix) :]: v for k, v in comments.items() if k.startswith(prefix)}
            schema = _describe_node(inner, deeper)
        else:
            schema = _describe_type(hints[name]) if name in hints else {}
        properties[name] = _comment(schema, comments.get(name))
    return {"properties": properties, "additionalProperties": False}


def _describe_type(hint: Any) -> Schema:
    try:
        found = TypeAdapter(hint).json_schema()
    # Pydantic has no schema for types such as Tensor and Callable.
    except (PydanticSchemaGenerationError, PydanticUserError):
        return {}
    return {"anyOf": [found, {"$ref": "#/$defs/interpolation"}]} if found else {}


def _comment(schema: Schema, comment: str | None) -> Schema:
    return {**schema, "description": comment} if comment else schema


if __name__ == "__main__":
    write_schemas(get_conf_dir() / "schema")
