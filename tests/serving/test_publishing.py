"""Test which files of a model folder are published, and that paths of this machine are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from saved_networks import save

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.serving.publishing import list_skipped, list_uploads


def read(part: Path | bytes) -> str:
    return part.decode() if isinstance(part, bytes) else part.read_text("utf-8")


def test_only_files_of_the_model_are_published(tmp_path: Path) -> None:
    save("bert_scratch", "lora", tmp_path)
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes(b"\xff\xfe")
    for name in ("predictions.parquet", "reviews.jsonl", "run.log", "secret.pem", "base/notes.txt"):
        (tmp_path / name).write_text("Отличный фильм")
    uploads = list_uploads(tmp_path)
    assert {*uploads} >= {
        "kinopoisk_ft.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
        "base/encoder/config.json", "base/encoder/model.safetensors", "model.onnx",
        "model.onnx.data",
    }  # fmt: skip
    assert list_skipped(tmp_path, uploads) == [
        "base/notes.txt", "predictions.parquet", "reviews.jsonl", "run.log", "secret.pem",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "pooled"])
def test_a_base_in_a_local_folder_is_named_by_its_hub_id(tmp_path: Path, kind: str) -> None:
    save(kind, "lora", tmp_path)
    (tmp_path / "README.md").write_text("---\nlanguage: ru\n---\nA card\n")
    with pytest.raises(UserError, match="--base owner/name"):
        list_uploads(tmp_path)
    uploads = list_uploads(tmp_path, "some/base")
    assert json.loads(read(uploads["kinopoisk_ft.json"]))["base"] == "some/base"
    adapter = json.loads(read(uploads["adapter_config.json"]))
    assert adapter["base_model_name_or_path"] == "some/base"
    assert "base_model: some/base" in read(uploads["README.md"])
    local = tiny.bert(with_pooler=kind == "bert")
    for name, part in uploads.items():
        if not name.endswith(".safetensors"):
            assert str(Path(local).parent) not in read(part), name


def test_a_whole_model_needs_no_base_and_names_none(tmp_path: Path) -> None:
    save("pooled", "none", tmp_path)
    card = json.loads(read(list_uploads(tmp_path)["kinopoisk_ft.json"]))
    original = json.loads((tmp_path / "kinopoisk_ft.json").read_text("utf-8"))
    assert Path(original["base"]).is_absolute()
    assert card == original | {"base": None}


def test_other_paths_of_this_machine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("bert", "none", tmp_path / "model")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/anna"))
    for text in ("see /home/anna/notes", f"from {tmp_path}/reviews.csv"):
        (tmp_path / "model" / "README.md").write_text(text)
        with pytest.raises(UserError, match=r"README\.md contains the path"):
            list_uploads(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("see /home/annabel, https://x.org/etc and </s>")
    assert "README.md" in list_uploads(tmp_path / "model")


@pytest.mark.parametrize("card", ["Модель".encode("cp1251"), b"---\nlanguage: [ru\n---\n"])
def test_an_unreadable_card_is_refused(tmp_path: Path, card: bytes) -> None:
    save("bert", "lora", tmp_path)
    (tmp_path / "README.md").write_bytes(card)
    with pytest.raises(UserError, match=r"README\.md cannot be read"):
        list_uploads(tmp_path, "some/base")


def test_an_existing_path_in_the_options_of_a_model_is_refused(tmp_path: Path) -> None:
    save("bert", "none", tmp_path)
    card = json.loads((tmp_path / "kinopoisk_ft.json").read_text("utf-8"))
    card["recipe"] = {"name": "/usr/bin/env"}
    (tmp_path / "kinopoisk_ft.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="the path '/usr/bin/env' of this machine"):
        list_uploads(tmp_path)
