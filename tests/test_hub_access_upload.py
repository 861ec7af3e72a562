"""Test uploads to a hub: which files arrive, and which cause each error names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import INVALID, TOKEN, HubServer
from huggingface_hub import constants

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import check_repository, upload


@pytest.fixture(autouse=True)
def _use_stand_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_files_arrive_in_a_private_repository(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 10)
    files = {"model.safetensors": tmp_path / "weights", "base/config.json": b'{"a": "\xd1\x8f"}'}
    assert upload("me/one", files) == f"{hub.url}/me/one"
    assert upload("me/open", {"README.md": b"---\ntags: [a]\n---\n"}, public=True)
    assert hub.private == {"me/one": True, "me/open": False}
    assert (hub.repo("me/one") / "model.safetensors").read_bytes() == bytes(range(256)) * 10
    assert (hub.repo("me/one") / "base/config.json").read_text("utf-8") == '{"a": "я"}'


def test_an_existing_repository_is_changed_only_on_request(hub: HubServer) -> None:
    upload("me/one", {"a.json": b"1"})
    with pytest.raises(UserError) as raised:
        upload("me/one", {"a.json": b"2"})
    assert "exists already" in raised.value.what
    assert "--update" in raised.value.fix
    assert (hub.repo("me/one") / "a.json").read_bytes() == b"1"
    upload("me/one", {"a.json": b"2"}, update=True)
    assert (hub.repo("me/one") / "a.json").read_bytes() == b"2"
    with pytest.raises(UserError, match="no repository 'me/two'"):
        upload("me/two", {"a.json": b"2"}, update=True)


def test_an_update_deletes_the_files_of_the_earlier_model(hub: HubServer) -> None:
    kept = ["notes.txt", "onnx/model.onnx", "onnx/adapter_config.json"]
    upload("me/one", dict.fromkeys([*kept, "adapter_config.json", "base/a.safetensors"], b"1"))
    files = {"model.safetensors": b"2"}
    patterns = ["*.safetensors", "base/*.safetensors", "adapter_config.json", "absent.json"]
    upload("me/one", files, update=True, replaced=patterns)
    folder = hub.repo("me/one")
    found = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert found == {*kept, "model.safetensors"}


@pytest.mark.parametrize(
    ("token", "name", "what", "fix"),
    [("", "me/one", "not logged in", "hf auth login"),
     ("hf_wrong", "me/one", "does not accept your token", "hf auth login"),
     (TOKEN, "you/one", "may not write to 'you/one'", "your own name")],
)  # fmt: skip
def test_refusals(
    monkeypatch: pytest.MonkeyPatch, token: str, name: str, what: str, fix: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(UserError) as raised:
        upload(name, {"a.json": b"1"})
    assert what in raised.value.what
    assert fix in raised.value.fix


def test_a_hub_that_is_off(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stop()
    with pytest.raises(UserError, match="the upload to 'me/one' failed"):
        upload("me/one", {"a.json": b"1"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode is on"):
        upload("me/one", {"a.json": b"1"})


def test_an_upload_that_fails_after_the_creation_says_how_to_repeat_it(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server._commit", lambda _: 1 / 0)
    monkeypatch.setattr(hub._server, "handle_error", lambda *_: None)
    with pytest.raises(UserError) as raised:
        upload("me/one", {"a.json": b"1"})
    assert "also pass --update" in raised.value.fix


def test_metadata_that_the_hub_refuses() -> None:
    files = {"README.md": f"---\n{INVALID}\n---\n".encode()}
    with pytest.raises(UserError, match=f"Invalid metadata in README.md. - {INVALID}") as raised:
        upload("me/one", files)
    assert "correct README.md in the model folder" in raised.value.fix
    assert "also pass --update" in raised.value.fix
    assert upload("me/one", {"README.md": b"---\nlicense: mit\n---\n"}, update=True)


@pytest.mark.parametrize("name", ["one", "me/one/two", "me/о", "me/a b", "../x", ""])
def test_names_without_owner_or_with_other_signs(name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a repository"):
        check_repository(name)
    check_repository("me/one-2_b.c")
