"""Fuzz model folders, base models with their tokenizers, and checkpoints."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import mutations as m
import numpy as np
from hypothesis import strategies as st
from mutations import Check

from kinopoisk_ft.errors import UserError


def model_folders(home: Path) -> Check:
    """Load damaged model folders of each kind, and classify two texts."""
    import hostile
    import tiny
    import torch
    from composing import compose_config
    from hydra.utils import instantiate

    from kinopoisk_ft.models.card import Card
    from kinopoisk_ft.serving.predictor import Predictor

    torch.set_num_threads(1)
    originals = home / "models"
    for kind, adapter in (
        ("bert", "none"),
        ("pooled", "none"),
        ("mamba", "none"),
        ("bert", "lora"),
    ):
        hostile.saved(kind, adapter, originals / f"{kind} {adapter}")
    texts, labels = tiny.reviews(20)
    tfidf = instantiate(compose_config(["model=tfidf"]).model)
    tfidf.fit_texts(texts, np.array(labels), 2).save(originals / "tfidf")
    Card(kind="tfidf", class_names=["Bad", "Good"], max_length=64).write(originals / "tfidf")
    names = sorted(folder.name for folder in originals.iterdir())
    reviews = ["хороший фильм", "8 из 10"]
    # This also compiles kernels, which an input may not write to disk.
    for name in names:
        Predictor(originals / name, "cpu").predict(reviews)

    def check(data: st.DataObject, folder: Path) -> None:
        shutil.copytree(originals / data.draw(st.sampled_from(names)), folder, dirs_exist_ok=True)
        m.change_folder(data, folder)
        before = digest(folder)
        with suppress(UserError):
            found = Predictor(folder, "cpu").probabilities(reviews)
            assert np.isfinite(found).all(), "probabilities are not finite numbers"
            if data.draw(st.booleans()):
                again = Predictor(folder, "cpu").probabilities(reviews)
                assert np.array_equal(found, again), "some weights are drawn at random"
        assert digest(folder) == before

    return check


def base_models(home: Path) -> Check:
    """Load damaged tokenizers and checkpoints from a folder, as from the hub."""
    import tiny
    import torch

    from kinopoisk_ft.data.preprocessing import Preprocessing
    from kinopoisk_ft.data.tokens import encode_ids
    from kinopoisk_ft.models.encoder import Encoder
    from kinopoisk_ft.models.mamba_recipe import Mamba
    from kinopoisk_ft.models.tokenizers import load_tokenizer

    torch.set_num_threads(1)
    originals = {"bert": tiny.bert(), "mamba": tiny.mamba()}
    common: dict[str, Any] = {"revision": None, "lr": 1e-3, "head_lr": None, "targets": {}}
    tokenizer_files = ("tokenizer.json", "tokenizer_config.json")

    def check(data: st.DataObject, folder: Path) -> None:
        kind = data.draw(st.sampled_from(sorted(originals)))
        shutil.copytree(originals[kind], folder, dirs_exist_ok=True)
        if data.draw(st.booleans()):
            m.change_file(data, folder / data.draw(st.sampled_from(tokenizer_files)))
        else:
            m.change_folder(data, folder)
        before, name = digest(folder), str(folder)
        with suppress(UserError):
            tokenizer = load_tokenizer(name)
            texts = ["хороший фильм", "[SEP] 8/10 \u200b é"]
            encode_ids(texts, tokenizer, Preprocessing(max_length=16, truncation="head_tail"))
            if kind == "bert":
                recipe: Any = Encoder(name=name, tokenizer=name, pooling="auto", dropout=None,
                                      **common)  # fmt: skip
            else:
                recipe = Mamba(name=name, tokenizer=name, pooling="mean", scan_backend="auto",
                               **common)  # fmt: skip
            recipe.build(("Bad", "Good"), tokenizer)
        assert digest(folder) == before

    return check


def checkpoints(home: Path) -> Check:
    """Resume from damaged checkpoints, with or without digests that match the damage."""
    import checkpointed
    import torch

    from kinopoisk_ft.files import compute_sha256
    from kinopoisk_ft.training import loop
    from kinopoisk_ft.training.checkpoint import manager
    from kinopoisk_ft.training.checkpoint.folder import MANIFEST, CheckpointFolder

    torch.set_num_threads(1)
    captured: list[Any] = []

    class Captured(manager.CheckpointManager):
        def resume(self) -> None:
            captured.append(self)
            super().resume()

    original = home / "run"
    original.mkdir()
    loop.CheckpointManager = Captured  # type: ignore[misc]
    checkpointed.fit(original)
    first = captured[0]
    names = [folder.name for folder in CheckpointFolder(original).folders()]

    def forge(folder: Path) -> None:
        """Write digests that match the damaged files."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            manifest = json.loads((folder / MANIFEST).read_text())
            for name in manifest["files"]:
                manifest["files"][name] = compute_sha256(folder / name)
            (folder / MANIFEST).write_text(json.dumps(manifest))

    def check(data: st.DataObject, folder: Path) -> None:
        shutil.copytree(original, folder, dirs_exist_ok=True)
        damaged = data.draw(st.sampled_from(names))
        m.change_folder(data, folder / damaged)
        if data.draw(st.booleans()):
            forge(folder / damaged)
        others = [name for name in names if name != damaged]
        before = {name: digest(folder / name) for name in others}
        one = copy.copy(first)
        state = copy.deepcopy(first.state)
        one.state, one.checkpoints = state, CheckpointFolder(folder)
        one.best = copy.copy(first.best)
        one.best.folder = folder
        one.parts = {"clock": copy.deepcopy(first.clock), "best_weights": one.best, "state": state}
        with suppress(UserError):
            one.resume()
        with suppress(UserError):
            one.best.restore(state.model)
        with suppress(UserError):
            manager.read_precision(folder)
        assert before == {name: digest(folder / name) for name in others}, "a valid one is lost"

    return check


def digest(folder: Path) -> dict[str, bytes | None]:
    """Return the contents of all files below a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None
        for file in sorted(folder.rglob("*"))
        if not file.is_symlink()
    }
