"""Draw damaged and hostile files with Hypothesis: bytes, JSON values, and folders of such files."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# Reads an input that it draws in a folder; raises what the package raises, except UserError.
Check = Callable[[st.DataObject, Path], None]
# Parts of files that readers treat specially.
SCRAPS = [
    b"", b"\xef\xbb\xbf", b"\x00", b"\xff\xfe", b"\xff\xfe\x00\x00", b"\r", b"\r\n", b"\n", b'"',
    b'""', b",", b"\t", b"{", b"}", b"[", b"]", b"null", b"NaN", b"-Infinity", b"1e999", b"true",
    b'{"text": ', b"\\ud83d", b"text,label\n", b"text\tlabel\n", b"[" * 3000, b"9" * 5000,
    b"PK\x03\x04", b"PAR1", b"\x1f\x8b\x08", "фильм".encode("cp1251"), "фильм".encode("utf-16"),
    "\u2028\u0085\u202e".encode(), b'{"text": "a", "text": "b", "label": 1}\n', b"\xed\xa0\x80",
    '{"text": "хороший фильм", "label": "Good", "n": 1}\n'.encode(),
    b'{"": {"a": [1, {"b": null}]}, "label": []}\n',
]  # fmt: skip
NUMBERS = [0, -1, 1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e300, float("nan"),
           float("inf")]  # fmt: skip
STRINGS = [
    "", " ", "\x00", "a", "text", "label", "фильм", "\ud800", "\u202e", "..", "../secret.txt",
    "/etc/passwd", "~", "os.getcwd", "evil_module", "float16", "bf16", "[UNK]", "[PAD]", "bert",
    "mamba", "http://127.0.0.1:9", "$" * 300, "1", "1.0", "true", "None", "=1+1", "2020-01-01",
]  # fmt: skip


def mostly(usual: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy that draws from `rare` in one of eight cases."""
    return st.one_of(*[usual] * 7, rare)


unicode_text = st.text(alphabet=st.characters(exclude_categories=()), max_size=8)
scalars = (
    st.sampled_from([None, True, False, *NUMBERS])
    | st.sampled_from(STRINGS)
    | st.integers()
    | st.floats()
    | unicode_text
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(STRINGS) | unicode_text, inner, max_size=3)
    ),
    max_leaves=5,
)
contents = st.lists(st.sampled_from(SCRAPS) | st.binary(max_size=20), max_size=12).map(b"".join)


class Evil:
    """An object that starts a program when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__("os").system, ("true",)


def change_bytes(data: st.DataObject, whole: bytes) -> bytes:
    """Change, insert, delete or repeat up to four parts of a file, or truncate it."""
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed)))
        match data.draw(st.sampled_from(["set", "insert", "delete", "repeat", "truncate"])):
            case "set":
                changed[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
            case "insert":
                changed[place:place] = data.draw(st.sampled_from(SCRAPS) | st.binary(max_size=8))
            case "delete":
                del changed[place : place + data.draw(st.integers(1, 64))]
            case "repeat":
                changed[place:place] = changed[place : place + data.draw(st.integers(1, 64))]
            case "truncate":
                del changed[place:]
    return bytes(changed)


def change_json(data: st.DataObject, value: Any) -> Any:
    """Replace, delete, rename, add or duplicate one part of a JSON value."""
    value = copy.deepcopy(value)
    parent, key, part = None, None, value
    while isinstance(part, dict | list) and part and data.draw(st.integers(0, 5)):
        keys = sorted(part) if isinstance(part, dict) else range(len(part))
        parent, key = part, data.draw(st.sampled_from(keys))
        part = parent[key]
    match data.draw(st.sampled_from(["replace", "replace", "delete", "add", "rename"])):
        case "delete" if parent is not None:
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[data.draw(st.sampled_from(STRINGS) | unicode_text)] = parent.pop(key)
        case "add" if isinstance(part, dict):
            part[data.draw(st.sampled_from(STRINGS) | unicode_text)] = data.draw(values)
        case "add" if isinstance(part, list):
            part.append(data.draw(st.sampled_from(part) if part else values))
        case _ if parent is None:
            return data.draw(values)
        case _:
            parent[key] = data.draw(values)
    return value


def write_json(value: Any) -> bytes:
    """Return a value as JSON; lone surrogates are written as they are."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _read_json(whole: bytes) -> Any:
    try:
        return json.loads(whole)
    except ValueError:
        return None


def change_file(data: st.DataObject, file: Path) -> None:
    """Damage one file: its bytes, its JSON, or its place in the folder.

    The header of a safetensors file is JSON, too: eight bytes with its length come before it.
    """
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    is_safetensors = file.suffix == ".safetensors"
    parsed = _read_json(whole[8 : 8 + header] if is_safetensors else whole)
    kinds = ["json"] * 6 * isinstance(parsed, dict) + ["bytes"] * 2 + ["other"]
    kind = data.draw(st.sampled_from(kinds))
    if kind == "json":
        changed = write_json(change_json(data, parsed))
        if is_safetensors:
            changed = len(changed).to_bytes(8, "little") + changed + whole[8 + header :]
        file.write_bytes(changed)
    elif kind == "bytes":
        file.write_bytes(change_bytes(data, whole))
    else:
        _replace_file(data, file)


def _replace_file(data: st.DataObject, file: Path) -> None:
    """Replace a file by nothing, a folder, a link, a pickle, or another file of the folder."""
    files = (one for one in file.parent.iterdir() if one.is_file())
    others = sorted(one for one in files if not one.is_symlink())
    swapped = data.draw(st.sampled_from(others)).read_bytes()
    kind = data.draw(st.sampled_from(["nothing", "folder", "link", "pickle", "swap", "empty"]))
    file.unlink()
    match kind:
        case "folder":
            file.mkdir()
        case "link":
            file.symlink_to(data.draw(st.sampled_from(["../secret.txt", file.name, "nowhere"])))
        case "pickle":
            file.with_name("pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
        case "swap":
            file.write_bytes(swapped)
        case "empty":
            file.touch()


def change_folder(data: st.DataObject, folder: Path) -> None:
    """Damage one or two files of a folder and its subfolders."""
    for _ in range(data.draw(st.integers(1, 2))):
        files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
        if files:
            change_file(data, data.draw(st.sampled_from(files)))
