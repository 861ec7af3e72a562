"""Check that checkpoints of other code are rejected and those of format 1 are read."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpointed import Recorder, fit, weights
from places import SAVED

from kinopoisk_ft import files
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.checkpoint.contents import (
    join_tensors,
    split_tensors,
    validate_checkpoint,
)
from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder

Forge = Callable[[dict[str, Any], dict[str, Any]], object]
# Changes of the contents and of the state in them, and the reason in the error.
FORGED: dict[str, tuple[Forge, str]] = {
    **{f"no {key}": (lambda _, state, key=key: state.pop(key), f"state/{key} is missing")
       for key in ("step", "history", "schedule", "scaler", "optimizer", "weights", "losses")},
    **{f"no {key}": (lambda c, _, key=key: c.pop(key), f"{key} is ") for key in (
        "clock", "best_weights", "state")},
    "no lr": (lambda _, s: s["optimizer"]["param_groups"][0].pop("lr"), "groups/0/lr is missing"),
    "fewer groups": (lambda _, s: s["optimizer"]["param_groups"].pop(), "groups/3 is missing"),
    "other state": (lambda _, s: s["optimizer"]["state"].update(x=5), "invalid literal"),
    "step": (lambda _, s: s.update(step="6"), "state/step is 6"),
    "best": (lambda _, s: s.update(best="good"), "state/best is good"),
    "file": (lambda c, _: c["best_weights"].update(file=5.5), "best_weights/file is 5.5"),
    "row": (lambda _, s: s["history"].append(["x"]), "must contain numbers and tensors only"),
    "schedule": (lambda _, s: s["schedule"].pop("last_epoch"), "last_epoch is missing"),
    "part": (lambda _, s: s.update(loss=torch.ones(1)), "state/loss is unknown"),
    "weight": (lambda _, s: s["weights"].update(x=torch.ones(1)), "weights/x is unknown"),
    "missing": (lambda _, s: s["weights"].popitem(), "is missing"),
    "size": (lambda _, s: s["weights"].update({first(s): torch.ones(3)}), r"is \(3,\) torch"),
    "moment": (lambda _, s: s["optimizer"]["state"]["0"].update(exp_avg=torch.ones(3)),
               r"0/exp_avg has shape \(3,\), but its weight"),
    "index": (lambda _, s: s["optimizer"]["state"].update({"99": {}}), "out of range"),
    "losses": (lambda _, s: s.update(losses=torch.tensor(1.0)), "iteration over a 0-d tensor"),
    "no random": (lambda _, s: s["rng"].pop("cpu"), "rng/cpu is missing"),
    "random": (lambda _, s: s["rng"]["cpu"].fill_(7), "RuntimeError"),
}  # fmt: skip


def first(state: dict[str, Any]) -> str:
    return next(iter(state["weights"]))


@pytest.mark.parametrize("name", FORGED)
def test_a_checkpoint_that_no_run_like_this_wrote_is_refused(name: str, checkpoints: Path) -> None:
    """The digests of the checkpoint are right."""
    folder = CheckpointFolder(checkpoints)
    last = folder.newest()
    assert last is not None
    contents, (forge, reason) = join_tensors(last.plain, last.load_tensors()), FORGED[name]
    forge(contents, contents["state"])
    tensors: dict[str, torch.Tensor] = {}
    folder.write(tensors, split_tensors(contents, tensors), {})
    with pytest.raises(UserError, match=f"does not match this run: .*{reason}") as raised:
        fit(checkpoints)
    assert str(folder.folders()[-1]) in str(raised.value)
    assert "resume=never" in str(raised.value)
    assert folder.newest() is not None


def test_a_file_that_holds_no_tensors_is_refused(checkpoints: Path) -> None:
    last = CheckpointFolder(checkpoints).folders()[-1]
    (last / "state.safetensors").write_bytes(b"x" * 100)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["files"]["state.safetensors"] = files.compute_sha256(last / "state.safetensors")
    (last / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not match this run: SafetensorError"):
        fit(checkpoints)


def test_split_and_join_are_inverse() -> None:
    tree = {"a": {"0": torch.ones(2), "b": [1.5, None, torch.zeros(0)]}, "c": "text", "d": []}
    tensors: dict[str, torch.Tensor] = {}
    plain = json.loads(json.dumps(split_tensors(tree, tensors)))
    assert set(tensors) == {"a/0", "a/b/2"}
    joined = join_tensors(plain, tensors)
    assert validate_checkpoint(tree, joined) is None
    assert torch.equal(joined["a"]["0"], tree["a"]["0"])
    assert (joined["a"]["b"][:2], joined["c"], joined["d"]) == ([1.5, None], "text", [])


def test_a_checkpoint_of_the_first_format_is_resumed(tmp_path: Path) -> None:
    """It was written after step 8 of 10, and the rest of the run equals an uninterrupted run."""
    old = Path(shutil.copytree(SAVED / "checkpoint_format_1", tmp_path / "old"))
    recorder = Recorder()
    state, whole = fit(old, recorder=recorder), fit(tmp_path / "whole")
    assert min(step for step, _ in recorder.values) == 9
    torch.testing.assert_close(weights(state), weights(whole), atol=1e-4, rtol=1e-3)
    assert [row["step"] for row in state.history] == [row["step"] for row in whole.history]
    assert (state.tokens, state.best_step) == (whole.tokens, whole.best_step)
    last = CheckpointFolder(old).newest()
    assert last is not None
    assert (last.format, last.plain["state"]["step"]) == (2, 10)


@pytest.mark.parametrize(
    ("stored", "now", "expected"),
    [(None, 5.0, 5.0), (9.0, 5.0, 9.0), (5.0, 9.0, 9.0), (math.nan, 5.0, math.nan),
     (5.0, math.nan, math.nan)],
)  # fmt: skip
def test_the_peak_memory_of_a_resumed_run_includes_earlier_processes(
    stored: float | None, now: float, expected: float, checkpoints: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Checkpoints of earlier versions lack it. NaN means that a system does not report it."""
    folder = CheckpointFolder(checkpoints)
    last = folder.newest()
    assert last is not None
    assert last.plain["state"].pop("peak_memory_mb") > 0
    if stored is not None:
        last.plain["state"]["peak_memory_mb"] = stored
    best = last.plain["best_weights"]
    folder.write(last.load_tensors(), last.plain, {best["file"]: best["digest"]})
    monkeypatch.setattr("kinopoisk_ft.training.state.peak_memory_mb", lambda _: now)
    state = fit(checkpoints)
    assert state.step == 10
    assert state.measure_peak_memory() == pytest.approx(expected, nan_ok=True)
