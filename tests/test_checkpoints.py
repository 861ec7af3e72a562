"""Checkpoints that are damaged, that cannot be written or are of another run; bad numbers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from composing import compose_config
from hydra.utils import instantiate
from networks import make
from safetensors.torch import load_file
from torch import nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training import disk
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.capture import frozen_digest
from kinopoisk_ft.training.checkpoint import BestWeights, trained_tensors
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision
from kinopoisk_ft.training.resume import kept_precision
from kinopoisk_ft.training.signals import Stopped, StopSignals
from kinopoisk_ft.training.snapshots import KEPT, Snapshots
from kinopoisk_ft.training.state import State
from kinopoisk_ft.unfinished import Unfinished, kept_seed

SMALL = [
    "model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu", "trainer.batch_size=8",
    "trainer.epochs=2", "trainer.lr=0.01", "trainer.checkpoint_every=2", "trainer.eval_every=3",
]  # fmt: skip


class Recorder:
    """Keeps what is recorded; can do something at a step."""

    def __init__(self, at: Callable[[int], None] = lambda _: None) -> None:
        self.values: dict[tuple[int, str], float] = {}
        self.flushed, self.at = 0, at

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.values |= {(step, key): value for key, value in values.items()}
        self.at(step)

    def flush(self) -> None:
        self.flushed += 1


def fit(
    folder: Path,
    *overrides: str,
    recorder: Recorder | None = None,
    about: dict[str, str] | None = None,
    prepare: Callable[[nn.Module], None] = lambda _: None,
    adapter: str = "none",
) -> State:
    cfg = compose_config([*SMALL, "trainer.log_every=1", *overrides])
    trainer = instantiate(cfg.trainer)
    precision, clock = trainer.open(folder)
    _, made, network, tokenizer = make("bert_scratch", adapter)
    adapted = made.apply(network)
    prepare(adapted.module)
    data = []
    for count, seed in ((40, 0), (8, 1)):
        texts, labels = tiny.reviews(count, seed)
        data.append(Examples(tokenizer(texts)["input_ids"], np.array(labels)))
    found: State = trainer.fit(
        adapted.module, Classification(tokenizer.pad_token_id), *data, fresh=adapted.fresh,
        audit=lambda _: None, precision=precision, clock=clock, recorder=recorder or Recorder(),
        folder=folder, about={"data": "tiny"} if about is None else about,
    )  # fmt: skip
    return found


def weights(state: State) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trained_tensors(state.model).values()])


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken_off")

    def stop(step: int) -> None:
        if step == 9:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fit(folder, recorder=Recorder(stop))
    assert steps(folder) == [6, 8]
    return folder


@pytest.fixture
def checkpoints(broken_off: Path, tmp_path: Path) -> Path:
    """A folder with the last two checkpoints, after steps 6 and 8, of a run of ten steps."""
    return Path(shutil.copytree(broken_off, tmp_path / "checkpoints"))


def steps(folder: Path) -> list[int]:
    found = Snapshots(folder).folders()
    return [json.loads((f / "state.json").read_text())["step"] for f in found]


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
    last = Snapshots(checkpoints).folders()[-1]
    damage(last / name)
    found = Snapshots(checkpoints).newest()
    assert found is not None
    assert found.plain["step"] == 6
    assert f"{last} is not used" in caplog.text
    assert not last.exists()


def test_damage_changes_no_result(checkpoints: Path, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    for name in ("state.safetensors", "manifest.json"):
        flip(Snapshots(checkpoints).folders()[-1] / name)
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
    snapshots = Snapshots(checkpoints)
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
    last = Snapshots(checkpoints).folders()[-1]
    (last / "state.safetensors").write_bytes(b"x" * 100)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["files"]["state.safetensors"] = disk.sha256(last / "state.safetensors")
    (last / "manifest.json").write_text(json.dumps(manifest))
    found = Snapshots(checkpoints).newest()
    assert found is not None
    assert found.plain["step"] == 6


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_a_checkpoint_that_cannot_be_read_stays_and_the_one_before_is_used(
    name: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, last = Snapshots(checkpoints).folders()
    bests = sorted(checkpoints.glob("best-*"))
    failing = [last / name]
    open_file = Path.open

    def fail(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self in failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    found = Snapshots(checkpoints).newest()
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
    monkeypatch.setattr("kinopoisk_ft.training.checkpoint.sha256", fail)
    with pytest.raises(UserError, match="best weights of this run cannot be read") as raised:
        best.restore(nn.Linear(1, 1))
    assert str(best.file) in str(raised.value)
    assert "the same command again" in str(raised.value)


def test_damaged_best_weights_spoil_the_checkpoints_that_hold_on_to_them(checkpoints: Path) -> None:
    for file in checkpoints.glob("best-*"):
        flip(file)
    assert Snapshots(checkpoints).newest() is None
    best = BestWeights(checkpoints)
    with pytest.raises(UserError, match="missing or damaged"):
        best.restore(nn.Linear(1, 1))


def test_two_checkpoints_and_their_bests_are_kept(tmp_path: Path) -> None:
    recorder = Recorder()
    fit(tmp_path, "trainer.checkpoint_every=1", "trainer.eval_every=1", recorder=recorder)
    snapshots = Snapshots(tmp_path)
    assert len(snapshots.folders()) == KEPT == 2
    assert steps(tmp_path) == [9, 10]
    kept = {file.name for file in tmp_path.glob("best-*")}
    assert snapshots.beside() <= kept
    assert len(kept) <= 2
    assert recorder.flushed == 10
    assert not list(tmp_path.glob("*.part"))


def test_adapters_save_what_trains_alone(tmp_path: Path) -> None:
    state = fit(tmp_path, adapter="lora")
    found = Snapshots(tmp_path).newest()
    assert found is not None
    names = {n.removeprefix("weights.") for n in found.tensors() if n.startswith("weights.")}
    trained = {n for n, p in state.model.named_parameters() if p.requires_grad}
    assert names == trained | {n for n, _ in state.model.named_buffers()}
    assert not any("query.base_layer" in name for name in names)


def test_another_base_or_other_data_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, adapter="head")

    def other(module: nn.Module) -> None:
        with torch.no_grad():
            next(p for p in module.parameters() if not p.requires_grad)[0] += 1

    with pytest.raises(UserError, match=r"frozen weights: \w+ there, \w+ now") as refused:
        fit(tmp_path, adapter="head", prepare=other)
    assert "resume=never" in str(refused.value)
    with pytest.raises(UserError, match="data: tiny there, large now"):
        fit(tmp_path, adapter="head", about={"data": "large"})


def test_frozen_digest_sees_every_bit() -> None:
    model = nn.Linear(3, 2).requires_grad_(False)
    before = frozen_digest(model)
    with torch.no_grad():
        model.weight[0, 0] = torch.nextafter(model.weight[0, 0], torch.tensor(9.0))
    assert frozen_digest(model) != before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_ends_the_run_and_leaves_the_checkpoint(
    code: int, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, "save_file", fail)
    with pytest.raises(UserError, match=os.strerror(code)) as raised:
        fit(checkpoints)
    assert "start the same command again" in str(raised.value)
    monkeypatch.undo()
    assert steps(checkpoints) == [6, 8]
    assert Snapshots(checkpoints).newest() is not None
    assert not list(checkpoints.glob("*.part"))


def test_space_is_checked_before_writing(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "MARGIN", 2**60)
    with pytest.raises(UserError, match="are to stay free: there are"):
        fit(checkpoints)
    assert steps(checkpoints) == [6, 8]


def test_a_folder_that_cannot_be_made_is_told() -> None:
    with pytest.raises(UserError, match="could not be written"):
        fit(Path("/proc/no/checkpoints"))


def test_no_checkpoints_where_none_are_wanted(tmp_path: Path) -> None:
    fit(tmp_path, "trainer.checkpoint_every=0")
    assert not Snapshots(tmp_path).folders()
    assert len(list(tmp_path.glob("best-*"))) == 1


def test_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path, "trainer.checkpoint_every=null")
    assert not Snapshots(tmp_path).folders()
    monkeypatch.setattr("kinopoisk_ft.training.resume.SECONDS", 0.0)
    monkeypatch.setattr("kinopoisk_ft.training.resume.SHARE", 0)
    fit(tmp_path, "trainer.checkpoint_every=null")
    assert steps(tmp_path) == [9, 10]


def test_seconds_and_precision_go_on(checkpoints: Path) -> None:
    file = Snapshots(checkpoints).folders()[-1] / "state.json"
    assert json.loads(file.read_text())["seconds"]["train"] > 0
    assert kept_precision(checkpoints) == "fp32"


def test_a_signal_in_evaluation_leaves_it_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scores = Classification.scores

    def stop(*args: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return scores(*args)

    monkeypatch.setattr(Classification, "scores", stop)
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, "trainer.checkpoint_every=9")
    assert stopped.value.exit_code == 143
    assert steps(tmp_path) == [3]
    monkeypatch.undo()
    recorder = Recorder()
    state = fit(tmp_path, "trainer.checkpoint_every=9", recorder=recorder)
    assert [s for s, key in recorder.values if key == "val_loss"] == [3, 6, 9, 10]
    whole = fit(tmp_path_factory.mktemp("whole"))
    assert torch.equal(weights(state), weights(whole))


@pytest.mark.usefixtures("heeded")
def test_signals_wait_for_the_step_and_a_second_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = []

    def step(*numbers: int) -> None:
        with StopSignals() as signals, signals.held():
            for number in numbers:
                os.kill(os.getpid(), number)
            done.append(numbers)

    with pytest.raises(Stopped) as first:
        step(signal.SIGUSR1)
    assert (done, first.value.torn, first.value.exit_code) == ([(signal.SIGUSR1,)], False, 143)
    with pytest.raises(Stopped) as second:
        step(signal.SIGTERM, signal.SIGINT)
    assert (len(done), second.value.torn, second.value.exit_code) == (1, True, 130)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def poisoned(unprobed: None, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps whose loss is made infinite."""
    chosen: set[int] = set()
    loss_sum, calls = Classification.loss_sum, [0]

    def poison(self: Classification, model: nn.Module, batch: Any) -> Any:
        loss, logits = loss_sum(self, model, batch)
        if not model.training:
            return loss, logits
        calls[0] += 1
        return (loss * float("inf") if calls[0] in chosen else loss), logits

    monkeypatch.setattr(Classification, "loss_sum", poison)
    return chosen


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_with_bad_numbers_is_skipped(
    optimizer: str, poisoned: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused and plain optimizers leave weights and their own state as they were."""
    seen: list[tuple[torch.Tensor, str]] = []
    step = Precision.step

    def watched(self: Precision, optimizer: Any, parameters: Any, *rest: Any) -> Any:
        parameters = list(parameters)
        verdict = step(self, optimizer, parameters, *rest)
        flat = torch.cat([p.detach().flatten() for p in parameters])
        state = optimizer.state_dict()["state"]
        inner = [v.clone() for s in state.values() for v in s.values() if torch.is_tensor(v)]
        seen.append((flat, str([t.double().sum().item() for t in inner])))
        return verdict

    monkeypatch.setattr(Precision, "step", watched)
    poisoned |= {4, 5}
    recorder = Recorder()
    state = fit(tmp_path, f"trainer/optimizer={optimizer}", recorder=recorder)
    assert state.step == 10
    assert (state.skipped, state.bad_in_row) == (2, 0)
    for after in (3, 4):
        assert torch.equal(seen[after][0], seen[2][0])
        assert seen[after][1] == seen[2][1]
    assert not torch.equal(seen[5][0], seen[2][0])
    assert recorder.values[(10, "skipped_steps")] == 2
    assert (4, "train_loss") not in recorder.values
    assert torch.isfinite(weights(state)).all()


def test_too_many_bad_steps_in_a_row_stop_the_run(poisoned: set[int], tmp_path: Path) -> None:
    poisoned |= {2, 4, 5, 6}
    with pytest.raises(UserError, match="not finite in 3 steps in a row, up to step 6") as raised:
        fit(tmp_path, "trainer.max_bad_steps=3")
    assert "bad_batch.safetensors" in str(raised.value)
    batch = load_file(tmp_path / "bad_batch.safetensors")
    assert batch["0.input_ids"].shape == batch["0.attention_mask"].shape
    assert json.loads((tmp_path / "bad_batch.json").read_text())["step"] == 6


def test_config_decides_whether_a_run_goes_on(tmp_path: Path) -> None:
    config = {"seed": 7, "resume": "auto", "trainer": {"lr": 0.1}, "output_dir": "a"}
    assert Unfinished(tmp_path, config).reopen() is None
    Unfinished(tmp_path, config).begin("id")
    assert kept_seed(tmp_path, "auto") == 7
    assert kept_seed(tmp_path, "never") is None
    assert Unfinished(tmp_path, {**config, "output_dir": "b"}).reopen() == "id"
    other = {**config, "trainer": {"lr": 0.2}}
    checkpoint = tmp_path / "checkpoints" / "checkpoint-000001"
    checkpoint.mkdir(parents=True)
    with pytest.raises(UserError, match=r"trainer.lr: 0.1 there, 0.2 now"):
        Unfinished(tmp_path, other).reopen()
    assert checkpoint.exists()
    assert Unfinished(tmp_path, {**other, "resume": "never"}).reopen() is None
    assert not checkpoint.exists()
    assert kept_seed(tmp_path, "auto") is None
