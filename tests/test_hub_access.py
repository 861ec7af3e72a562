"""Test the hub with an empty and a filled cache, offline, and without a connection."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from forks import CHILDREN
from hub_child import ask_in_a_fork
from hub_server import GATED, HubServer
from huggingface_hub import constants, hf_hub_download, snapshot_download
from places import HELPERS
from tracked import wait_for
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from kinopoisk_ft import hub_access
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub

FIX = "give a folder"
BASE = {"limit": None, "max_length": 8, "empty": "drop"}
COLUMNS = {"text_column": "text", "label_column": "label", "classes": None}


def write_model(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "да", "нет"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    BertModel(config).save_pretrained(folder)


def write_data(hub: HubServer) -> None:
    labels = ["Good", "Bad"] * 20
    texts = [f"отзыв {n}" for n in range(40)]
    reviews = pd.DataFrame({"content": texts, "grade3": labels})
    folder = hub.repo("blinoff/kinopoisk", "datasets")
    reviews.to_json(folder / "kinopoisk.jsonl", orient="records", lines=True)
    table = pd.DataFrame({"text": texts, "label": labels})
    folder = hub.repo("some/tables", "datasets")
    (folder / "dataset_infos.json").write_text("{}")
    for subset in ("ru", "en"):
        (folder / subset).mkdir()
        for part in ("train", "test"):
            table.to_parquet(folder / subset / f"{part}-00000-of-00001.parquet")
    (folder / "old").mkdir()
    table.to_csv(folder / "old" / "train.csv")


WARM = [
    ("model", "some/bert"),
    ("Kinopoisk", {**BASE, "classes": 2}),
    ("HubDataset", {**BASE, **COLUMNS, "name": "some/tables", "subset": "ru"}),
    ("HubDataset", {**BASE, **COLUMNS, "name": "some/tables", "files": "en/*train*"}),
]
COLD = [
    ("model", "other/bert"),
    ("Kinopoisk", {**BASE, "classes": 2, "name": "other/kinopoisk"}),
    ("HubDataset", {**BASE, **COLUMNS, "name": "other/tables"}),
]
ODD = [
    ("HubDataset", {**BASE, **COLUMNS, "name": "some/tables"}),
    ("HubDataset", {**BASE, **COLUMNS, "name": "some/tables", "subset": "de"}),
    ("HubDataset", {**BASE, **COLUMNS, "name": "some/tables", "revision": "v2"}),
]


def fork(hub: HubServer, file: Path, checks: list[tuple[str, Any]]) -> None:
    """Ask the hub in a fork, and write the answers to a file."""
    args = (hub.url, hub.root / "home", checks, file)
    file.unlink(missing_ok=True)
    process = CHILDREN.Process(target=ask_in_a_fork, args=args)
    process.start()
    # The exit code is lost if the fork server ends or if other code closes its pipe.
    wait_for(file.exists)


def interpret(hub: HubServer, file: Path, checks: list[tuple[str, Any]]) -> None:
    """Do what `fork` does in a new interpreter; huggingface_hub reads its environment once."""
    code = f"import runpy, sys; sys.path.append({str(HELPERS)!r}); "
    code += "runpy.run_module('hub_child', run_name='__main__')"
    process = hub.run(code, json.dumps(checks), str(file))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr


@pytest.fixture(
    scope="module", params=[fork, pytest.param(interpret, marks=pytest.mark.slow)],
    ids=lambda ask: ask.__name__,
)  # fmt: skip
def seen(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Any]:
    """Return the answers of a hub, and those of its cache without the hub and offline."""
    ask = request.param
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        write_model(hub.repo("some/bert"))
        write_data(hub)
        file = hub.root / "answers.json"
        ask(hub, file, [*WARM, *COLD, *ODD])
        live = json.loads(file.read_text())
        hub.stop()
        ask(hub, file, [*WARM, *COLD, ("offline", True), *WARM, *COLD])
        later = json.loads(file.read_text())
        half = len(later) // 2
        return {"url": hub.url, "live": live, "dead": later[:half], "offline": later[half:]}


def test_cold_download(seen: dict[str, Any]) -> None:
    model, kinopoisk, subset, pattern = seen["live"][:4]
    assert model[0] == [2, 5, 6, 3]
    assert model[1] > 0
    assert kinopoisk[:2] == [40, ["Bad", "Good"]]
    assert subset[:2] == [80, ["Bad", "Good"]]
    assert pattern[:2] == [40, ["Bad", "Good"]]


@pytest.mark.parametrize("state", ["offline", "dead"])
def test_the_cache_serves_when_the_hub_does_not(seen: dict[str, Any], state: str) -> None:
    assert seen[state][:4] == seen["live"][:4]


@pytest.mark.parametrize(
    ("state", "what", "fix"),
    [
        (
            "live",
            "{} is neither a local folder nor a public repository on the hub",
            "check the name, or ",
        ),
        ("offline", "{} is not in the cache, and offline mode is on", "unset HF_HUB_OFFLINE, or "),
        (
            "dead",
            "{} is not in the cache, and the hub cannot be reached",
            "check the connection, or ",
        ),
    ],
)
def test_what_is_missing_is_reported(seen: dict[str, Any], state: str, what: str, fix: str) -> None:
    model, kinopoisk, tables = seen[state][4:7]
    assert model[0] == what.format("model 'other/bert'")
    assert model[2] == fix + "give model.name=<folder>"
    assert kinopoisk[0] == what.format("data set 'other/kinopoisk'")
    assert kinopoisk[2].startswith(fix + "use a local copy with data.path=<file>")
    assert "data=demo" in kinopoisk[2]
    assert tables[0] == what.format("data set 'other/tables'")
    place = {"live": seen["url"], "offline": "cache ", "dead": f"{seen['url']}: "}[state]
    assert all(result[1].startswith(place) for result in (model, kinopoisk, tables))


def test_a_data_set_whose_tables_are_in_doubt(seen: dict[str, Any]) -> None:
    formats, missing, revision = seen["live"][7:]
    assert formats[0].endswith("has tables in several formats: .csv, .parquet")
    assert formats[2] == "choose one format, for example data.files='*.csv'"
    assert "has no table that matches de/*.jsonl or" in missing[0]
    assert revision[0].startswith("data set 'some/tables' has no such revision: ")
    assert "v2" in revision[0]


@pytest.fixture
def go_online(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Allow requests of this process to the given server only."""

    def allow(url: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)

    return allow


@pytest.mark.parametrize(
    ("repo", "file", "message"),
    [
        ("open/tables", "gone.csv", "has no such file: 404"),
        ("gated/tables", "a.csv", "file 'gated/tables' is gated"),
        ("no/tables", "a.csv", "is neither a local folder nor a public repository"),
        ("not a name", "a.csv", "is neither a local folder nor a public repository"),
    ],
)
def test_answers_of_a_living_hub(
    hub: HubServer,
    go_online: Callable[[str], None],
    tmp_path: Path,
    repo: str,
    file: str,
    message: str,
) -> None:
    go_online(hub.url)
    hub.repo("open/tables", "datasets")
    (hub.repo("gated/tables", "datasets") / GATED).touch()
    with pytest.raises(UserError, match=message) as caught, access_hub("file", repo, FIX):
        hf_hub_download(repo, file, repo_type="dataset", cache_dir=tmp_path / "cache")
    assert FIX in (caught.value.fix or "")


@pytest.fixture
def silent_url() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_hub_is_given_up_once(
    silent_url: str,
    go_online: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_online(silent_url)
    monkeypatch.setattr(hub_access, "_TIMEOUT", 0.2)
    for download in (hf_hub_download, snapshot_download):
        file = {"filename": "a.csv"} if download is hf_hub_download else {}
        expected = pytest.raises(UserError, match="the hub cannot be reached")
        with expected as caught, access_hub("file", "some/repo", FIX):
            download("some/repo", cache_dir=tmp_path / "cache", **file)
        assert caught.value.where == f"{silent_url}: timed out"
    assert constants.HF_HUB_OFFLINE is False
    assert caplog.text.count("the hub cannot be reached, so only cached files are used") == 1


def test_a_local_folder_needs_no_hub(
    silent_url: str, go_online: Callable[[str], None], tmp_path: Path
) -> None:
    go_online(silent_url)
    write_model(tmp_path)
    with access_hub("model", str(tmp_path), FIX):
        AutoModel.from_pretrained(str(tmp_path))
    assert silent_url not in hub_access._answers


def test_a_block_inside_another_gives_the_same_reason(
    silent_url: str,
    go_online: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_online(silent_url)
    monkeypatch.setattr(hub_access, "_TIMEOUT", 0.2)
    expected = pytest.raises(UserError, match="the hub cannot be reached")
    with access_hub("model", "some/repo", FIX), expected, access_hub("file", "some/repo", FIX):
        hf_hub_download("some/repo", "a.csv", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("config.json", b"{", AutoModel),
        ("config.json", b"{}", AutoModel),
        ("model.safetensors", b"cut", AutoModel),
        ("tokenizer.json", b"{", AutoTokenizer),
        ("tokenizer_config.json", b"{", AutoTokenizer),
    ],
)
def test_a_broken_folder(tmp_path: Path, name: str, content: bytes, kind: Any) -> None:
    write_model(tmp_path)
    (tmp_path / name).write_bytes(content)
    expected = pytest.raises(UserError, match="cannot be loaded: ")
    with expected as caught, access_hub("model", str(tmp_path), FIX):
        kind.from_pretrained(str(tmp_path))
    assert caught.value.fix == FIX


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        ValueError("a bug"),
        KeyError("x"),
        UserError("already said"),
        KeyboardInterrupt(),
    ],
)
def test_unrelated_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, access_hub("file", "x", FIX):
        raise error
    assert caught.value is error


def test_a_lack_of_memory_is_not_blamed_on_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path)
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(BertModel, "__init__", Mock(side_effect=error))
    with pytest.raises(RuntimeError) as caught, access_hub("model", str(tmp_path), FIX):
        AutoModel.from_pretrained(str(tmp_path))
    assert caught.value is error
