"""Checkpoints that are damaged, unreadable, or of no run like this."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpointed import fit, steps, weights
from torch import nn

from kinopoisk_ft import files
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.checkpoint.best import BestWeights
from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(
    name: str, damage: Callable[[Path], None], checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = CheckpointFolder(checkpoints).folders()[-1]
    damage(last / name)
    found = CheckpointFolder(checkpoints).newest()
    assert found is not None
    assert found.plain["step"] == 6
    assert f"{last} is not used" in caplog.text
    assert not last.exists()


def test_damage_changes_no_result(checkpoints: Path, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    for name in ("state.safetensors", "manifest.json"):
        flip(CheckpointFolder(checkpoints).folders()[-1] / name)
    state = fit(checkpoints)  # none is left: it starts over
    assert torch.equal(weights(state), weights(whole))
    assert state.history == whole.history


Forge = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]
FORGED: dict[str, tuple[Forge, str]] = {
    **{f"no {key}": (lambda _, plain, key=key: plain.pop(key), f"it has no {key}")
       for key in ("step", "history", "schedule", "scaler", "seconds", "best_weights")},
    "no optimizer": (lambda _, plain: plain.pop("optimizer"), "it has no optimizer"),
    "no lr": (lambda _, p: p["optimizer"]["param_groups"][0].pop("lr"), "has no optimizer.param_g"),
    "fewer groups": (lambda _, p: p["optimizer"]["param_groups"].pop(), "is of another kind"),
    "other state": (lambda _, p: p["optimizer"]["state"].update(x=5), "it is of other weights"),
    "step": (lambda _, plain: plain.update(step="6"), "step is of another kind"),
    "best": (lambda _, plain: plain.update(best="good"), "best is of another kind"),
    "file": (lambda _, p: p["best_weights"].update(file=5.5, digest=[]), "of another kind"),
    "row": (lambda _, plain: plain["history"].append([]), "hold more than numbers"),
    "schedule": (lambda _, p: p["schedule"].pop("lr_lambdas"), "it has no schedule.lr_lambdas"),
    "part": (lambda t, _: t.update({"loss.x": torch.ones(1)}), "'loss' is no part"),
    "weight": (lambda t, _: t.update({"weights.x": torch.ones(1)}), "'x' is unknown"),
    "missing": (lambda t, _: t.pop(first(t, "weights.")), "is missing"),
    "size": (lambda t, _: t.update({first(t, "weights."): torch.ones(3)}), r"is \(3,\) torch"),
    "moment": (lambda t, _: t.update({"optimizer.0.exp_avg": torch.ones(3)}), r"is \(3,\), of a w"),
    "index": (lambda t, _: t.update({"optimizer.99.exp_avg": torch.ones(3)}), "of other weights"),
    "outputs": (lambda t, _: t.pop("best_outputs"), "best_outputs are missing"),
    "losses": (lambda t, _: t.update(losses=torch.tensor(1.0)), "losses are no list"),
    "no random": (lambda t, _: t.pop("rng.cpu"), "rng: 'cpu' is missing"),
    "random": (lambda t, _: t["rng.cpu"].fill_(7), "rng: "),
}  # fmt: skip


def first(tensors: dict[str, torch.Tensor], start: str) -> str:
    return next(name for name in tensors if name.startswith(start))


@pytest.mark.parametrize("name", FORGED)
def test_a_checkpoint_that_no_run_like_this_wrote_is_refused(name: str, checkpoints: Path) -> None:
    """Its digests are right."""
    snapshots = CheckpointFolder(checkpoints)
    last = snapshots.newest()
    assert last is not None
    tensors, (forge, told) = last.tensors(), FORGED[name]
    forge(tensors, last.plain)
    snapshots.write(tensors, last.plain, {})
    with pytest.raises(UserError, match=f"does not fit this run: .*{told}") as raised:
        fit(checkpoints)
    assert str(snapshots.folders()[-1]) in str(raised.value)
    assert "resume=never" in str(raised.value)
    assert snapshots.newest() is not None


def test_tensors_that_are_none_are_damage(checkpoints: Path) -> None:
    last = CheckpointFolder(checkpoints).folders()[-1]
    (last / "state.safetensors").write_bytes(b"x" * 100)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["files"]["state.safetensors"] = files.sha256(last / "state.safetensors")
    (last / "manifest.json").write_text(json.dumps(manifest))
    found = CheckpointFolder(checkpoints).newest()
    assert found is not None
    assert found.plain["step"] == 6


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_a_checkpoint_that_cannot_be_read_stays_and_the_one_before_is_used(
    name: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, last = CheckpointFolder(checkpoints).folders()
    bests = sorted(checkpoints.glob("best-*"))
    failing = [last / name]
    open_file = Path.open

    def fail(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self in failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    found = CheckpointFolder(checkpoints).newest()
    assert found is not None
    assert found.folder == before
    assert f"{last} is not used, and stays: it cannot be read" in caplog.text
    BestWeights(checkpoints).discard()
    assert sorted(checkpoints.glob("best-*")) == bests
    failing.append(before / name)
    with pytest.raises(UserError, match="cannot be read, and there is none before") as raised:
        fit(checkpoints)
    assert str(last) in str(raised.value)
    monkeypatch.undo()
    assert steps(checkpoints) == [6, 8]


def test_best_weights_that_cannot_be_read_are_told(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    best = BestWeights(checkpoints)
    best.file, best.digest = next(checkpoints.glob("best-*")), "0" * 64
    monkeypatch.setattr("kinopoisk_ft.training.checkpoint.best.sha256", fail)
    with pytest.raises(UserError, match="best weights of this run cannot be read") as raised:
        best.restore(nn.Linear(1, 1))
    assert str(best.file) in str(raised.value)
    assert "the same command again" in str(raised.value)


def test_damaged_best_weights_spoil_the_checkpoints_that_hold_on_to_them(checkpoints: Path) -> None:
    for file in checkpoints.glob("best-*"):
        flip(file)
    assert CheckpointFolder(checkpoints).newest() is None
    best = BestWeights(checkpoints)
    with pytest.raises(UserError, match="missing or damaged"):
        best.restore(nn.Linear(1, 1))
