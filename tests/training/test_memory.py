"""Check that the micro-batch is halved when memory runs out, without a change of the result."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose_config
from gpu import ON_GPU
from hydra.utils import instantiate
from networks import make
from short_fit import Recorder, examples, short_fit, train_examples, weights
from torch import nn

from kinopoisk_ft.errors import UserError, is_out_of_memory
from kinopoisk_ft.training import loop
from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder
from kinopoisk_ft.training.distributed import strategy
from kinopoisk_ft.training.evaluate import evaluate, predict
from kinopoisk_ft.training.memory import halve_on_out_of_memory
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision

CPU = torch.device("cpu")
LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB, other allocations: 1 GB)."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


def tokens(rows: int) -> int:
    """Return the tokens of `rows` rows with the length of the longest review of `short_fit`."""
    return rows * int(train_examples(make("bert_scratch")[3]).lengths.max())


def forward_fails(error: BaseException, most: int) -> Callable[[nn.Module], None]:
    """Return a hook that makes the forward pass raise above the tokens of `most` rows."""
    limit = tokens(most)

    def check(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > limit:
            raise error

    def prepare(module: nn.Module) -> None:
        module.register_forward_pre_hook(check, with_kwargs=True)

    return prepare


def forward_needs_too_much(most: int, device: str) -> Callable[[nn.Module], None]:
    """Return a hook that allocates 1 PiB on the device above the tokens of `most` rows."""
    limit = tokens(most)

    def check(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > limit:
            torch.empty(2**50, dtype=torch.uint8, device=device)

    def prepare(module: nn.Module) -> None:
        module.register_forward_pre_hook(check, with_kwargs=True)

    return prepare


def backward_fails(error: BaseException, most: int) -> Callable[[nn.Module], None]:
    """Return a function that makes the backward pass raise below the last layer."""
    limit = tokens(most)

    def check(grad: torch.Tensor) -> None:
        if grad[..., 0].numel() > limit:
            raise error

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        if hidden.requires_grad:
            hidden.register_hook(check)

    def prepare(module: nn.Module) -> None:
        module.get_submodule("encoder.encoder.layer.1").register_forward_hook(watch)

    return prepare


@pytest.mark.parametrize(
    "error",
    [LACKS[0], *(pytest.param(lack, marks=pytest.mark.slow) for lack in LACKS[1:])],
    ids=lambda e: (str(e) or "MemoryError")[:12],
)
def test_work_is_done_with_half_the_rows(error: BaseException) -> None:
    tried, drawn = [], []

    def work(rows: int) -> str:
        tried.append(rows)
        drawn.append(torch.rand(1).item())
        if rows > 2:
            raise error
        return "done"

    assert halve_on_out_of_memory(work, 9, CPU, "a test") == ("done", 2)
    assert tried == [9, 5, 3, 2]
    assert len(set(drawn)) == 1
    assert torch.rand(1).item() not in drawn


def test_a_failed_attempt_holds_nothing_when_the_next_begins() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def work(rows: int) -> None:
        assert all(tensor() is None for tensor in held)
        activations = torch.ones(rows)
        held.append(weakref.ref(activations))
        if rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    halve_on_out_of_memory(work, 4, CPU, "a test")
    assert len(held) == 3


def test_a_step_without_memory_is_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = short_fit(tmp_path / "whole")
    state, found = short_fit(tmp_path / "halved", prepare=forward_fails(LACKS[0], 3))
    assert (state.step, state.micro_batch_size) == (4, 3)
    assert "with 12 rows at once; retrying with 6" in caplog.text
    assert "with 6 rows at once; retrying with 3" in caplog.text
    for name in ("train_loss", "val_loss", "lr"):
        np.testing.assert_allclose(found.of(name), expected.of(name), atol=1e-6)


@pytest.mark.parametrize("device", [ON_GPU])
def test_a_device_without_memory_gets_half_the_rows(
    device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = f"trainer.device={device}"
    _, expected = short_fit(tmp_path / "whole", where)
    state, found = short_fit(tmp_path / "halved", where, prepare=forward_needs_too_much(3, device))
    assert (state.step, state.micro_batch_size) == (4, 3)
    assert "with 12 rows at once; retrying with 6" in caplog.text
    for name in ("train_loss", "val_loss"):
        np.testing.assert_allclose(found.of(name), expected.of(name), atol=1e-3)


def test_gradients_of_a_broken_off_attempt_are_dropped(tmp_path: Path) -> None:
    settings = ["trainer.accumulate=3"]
    _, expected = short_fit(tmp_path / "whole", *settings)
    # The smaller last batch of the step succeeds before the failure.
    fails = backward_fails(LACKS[0], 11)
    state, found = short_fit(tmp_path / "halved", *settings, prepare=fails)
    assert state.micro_batch_size == 6
    np.testing.assert_allclose(found.of("train_loss"), expected.of("train_loss"), atol=1e-6)
    np.testing.assert_allclose(found.of("val_loss"), expected.of("val_loss"), atol=1e-6)


@pytest.mark.slow
def test_masks_are_those_of_small_micro_batches_from_the_start(tmp_path: Path) -> None:
    """A failed attempt leaves the random state unchanged, wherever it failed."""
    small, _ = short_fit(tmp_path / "small", "trainer.micro_batch_size=6", dropout=0.3)
    for i, fails in enumerate((forward_fails, backward_fails)):
        halved, _ = short_fit(tmp_path / str(i), dropout=0.3, prepare=fails(LACKS[0], 6))
        assert torch.equal(weights(halved), weights(small))
    whole, _ = short_fit(tmp_path / "whole", dropout=0.3)
    assert not torch.equal(weights(whole), weights(small))


@pytest.mark.slow
@pytest.mark.parametrize("probed", [True, False])
def test_lack_of_memory_for_one_row_is_reported(
    probed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not probed:
        monkeypatch.setattr(loop, "fit_rows_to_memory", lambda state, _: state.micro_batch_size)
    with pytest.raises(UserError, match="training with a single row at once") as raised:
        short_fit(tmp_path, prepare=forward_fails(LACKS[0], 0))
    assert "lower data.max_length" in str(raised.value)


def test_lack_of_memory_in_the_optimizer_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LACKS[0]

    monkeypatch.setattr(Precision, "step", fail)
    with pytest.raises(UserError, match="ran out in the optimizer step: CUDA out of memory"):
        short_fit(tmp_path)


def test_other_errors_are_raised_at_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def prepare(module: nn.Module) -> None:
        def fail(*_: object) -> None:
            calls.append(1)
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        module.register_forward_pre_hook(fail)

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        short_fit(tmp_path, prepare=prepare)
    assert len(calls) == 1
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("MPS backend out of memory"))


@pytest.mark.slow
def test_the_size_found_is_in_the_checkpoint(tmp_path: Path) -> None:
    whole, _ = short_fit(tmp_path / "whole", dropout=0.3, prepare=forward_fails(LACKS[0], 6))

    every = "trainer.checkpoint_every=2"

    def stop(step: int) -> None:
        if step == 3:
            raise KeyError("power cut")

    with pytest.raises(KeyError):
        short_fit(
            tmp_path / "broken", every, dropout=0.3, prepare=forward_fails(LACKS[0], 6),
            recorder=Recorder(stop),
        )  # fmt: skip
    kept = CheckpointFolder(tmp_path / "broken").newest()
    assert kept is not None
    assert [kept.plain["state"][key] for key in ("step", "micro_batch_size")] == [2, 6]
    # This time, nothing fails.
    state, recorder = short_fit(tmp_path / "broken", every, dropout=0.3)
    assert recorder.of("micro_batch_size") == [6] * 2
    assert torch.equal(weights(state), weights(whole))


def test_one_process_of_torchrun_can_go_down_to_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP does not treat the backward pass of a failed attempt as complete."""
    monkeypatch.setattr(strategy, "resolve_strategy", lambda asked: "ddp")
    model = nn.Linear(2, 2)
    assert strategy.wrap_model(model, "auto", torch.device("cpu")) is model


def test_several_processes_make_as_many_parts_whatever_one_went_down_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = instantiate(compose_config(["trainer.batch_size=12"]).trainer)
    monkeypatch.setattr(loop, "world_size", lambda: 2)
    state = SimpleNamespace(step=4, steps=9, micro_batch_size=3)
    trainer._prepare(state, None, None)
    assert state.micro_batch_size == 12


def test_evaluation_and_prediction_are_halved() -> None:
    _, _, network, tokenizer = make("bert_scratch", "none")
    data, objective = examples(tokenizer, 40, 0), Classification(tokenizer.pad_token_id)
    fp32 = Precision("fp32", CPU)
    whole = evaluate(network.module, data, objective, fp32, 8)
    longest = int(data.lengths.max())

    def check(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > 3 * longest:
            raise LACKS[0]

    network.module.register_forward_pre_hook(check, with_kwargs=True)
    found = evaluate(network.module, data, objective, fp32, 8)
    assert (whole.batch_size, found.batch_size) == (8, 2)
    torch.testing.assert_close(found.outputs, whole.outputs, atol=1e-6, rtol=0)
    assert found.scores == pytest.approx(whole.scores, abs=1e-6)
    predicted = predict(network.module, data, objective, fp32, 8)
    torch.testing.assert_close(predicted, whole.outputs, atol=1e-6, rtol=0)


def test_outputs_of_the_best_evaluation_are_kept(tmp_path: Path) -> None:
    """They equal the outputs of the best weights, which `fit` loads into the model, bit for bit."""
    state, recorder = short_fit(
        tmp_path, "trainer.best_metric=loss", "trainer.eval_every=1", "trainer.epochs=3",
        "trainer.lr=0.2", "trainer.warmup_share=0", dropout=0.3,
    )  # fmt: skip
    assert state.best_step < state.step == 12
    assert state.best == min(recorder.of("val_loss"))
    val = examples(make("bert_scratch")[3], 9, 1)
    again = evaluate(state.model, val, state.objective, Precision("fp32", CPU), 32)
    assert torch.equal(state.best_outputs, again.outputs)
