"""Compare the training loop with plain PyTorch: steps, evaluations, and the end of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from composing import change_config
from hydra.utils import instantiate
from networks import make
from short_fit import Recorder as CallingRecorder
from short_fit import short_fit
from torch import nn

from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.acceleration.dropout import Dropout
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.evaluate import evaluate
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision
from kinopoisk_ft.training.state import State

CPU = torch.device("cpu")


class Recorder:
    """A recorder of all metrics."""

    def __init__(self) -> None:
        self.values: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.values.append((step, values))


def trainer(*overrides: str) -> Trainer:
    base = ["model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu"]
    made: Trainer = instantiate(change_config([*base, *overrides]).trainer)
    return made


def examples(tokenizer: Any, count: int, seed: int = 0) -> Examples:
    texts, labels = tiny.reviews(count, seed)
    return Examples(tokenizer(texts)["input_ids"], np.array(labels))


def fit(
    folder: Path,
    *overrides: str,
    kind: str = "bert_scratch",
    audit: Callable[[nn.Module], None] = lambda _: None,
    count: int = 64,
) -> tuple[State, Recorder]:
    made = trainer(*overrides)
    precision, clock = made.open()
    _, _, network, tokenizer = make(kind, "none", "model.dropout=0.0")
    recorder = Recorder()
    state = made.fit(
        network.module,
        Classification(tokenizer.pad_token_id),
        examples(tokenizer, count),
        examples(tokenizer, 32, seed=9),
        fresh=network.fresh,
        audit=audit,
        precision=precision,
        clock=clock,
        recorder=recorder,
        folder=folder,
    )
    return state, recorder


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    """Micro-batches of different lengths and sizes give the update of one large batch."""
    settings = ["trainer.epochs=1", "trainer.lr=0.01", "trainer.clip_norm=null"]
    sizes = (["trainer.batch_size=12"], ["trainer.batch_size=4", "trainer.accumulate=3"])
    weights = []
    for i, size in enumerate(sizes):
        made = trainer(*settings, *size)
        precision, clock = made.open()
        _, _, network, tokenizer = make("bert_scratch", "none", "model.dropout=0.0")
        state = made._setup(
            network.module, Classification(tokenizer.pad_token_id), precision, (), 22, clock
        )
        data = examples(tokenizer, 22)
        rows = np.arange(22)
        groups = [[rows[:12]], [rows[12:]]] if i == 0 else [
            [rows[:4], rows[4:8], rows[8:12]], [rows[12:16], rows[16:20], rows[20:]]
        ]  # fmt: skip
        for group in groups:
            rng = np.random.default_rng(0)
            batches = [state.objective.collate(data, part, rng) for part in group]
            made._step(state, batches, lambda _: None)
        weights.append(torch.cat([p.detach().flatten() for p in network.module.parameters()]))
    assert state.step == 2
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=1e-4)


def test_step_equals_plain_pytorch() -> None:
    """Biases and norms have no weight decay, and the new head has its own learning rate."""
    made = trainer(
        "trainer.lr=0.01", "trainer.head_lr=0.05", "trainer.weight_decay=0.5",
        "trainer.warmup_steps=0", "trainer.epochs=1",
    )  # fmt: skip
    precision, clock = made.open()
    _, _, network, tokenizer = make("bert", "none", "model.dropout=0.0")
    _, _, twin, _ = make("bert", "none", "model.dropout=0.0")
    twin.module.load_state_dict(network.module.state_dict())
    data = examples(tokenizer, 16)
    state = made._setup(
        network.module, Classification(tokenizer.pad_token_id), precision, network.fresh, 16, clock
    )
    batch = state.objective.collate(data, np.arange(16), np.random.default_rng(0))
    made._step(state, [batch], lambda _: None)

    groups = [
        {
            "params": [parameter],
            "lr": 0.05 if name.startswith("classifier.") else 0.01,
            "weight_decay": 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.5,
        }
        for name, parameter in twin.module.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    loss = nn.functional.cross_entropy(twin.module(**inputs).logits, batch["labels"])
    loss.backward()
    nn.utils.clip_grad_norm_(twin.module.parameters(), 1.0)
    optimizer.step()
    for ours, theirs in zip(network.module.parameters(), twin.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state.losses[0], loss.detach())


@pytest.mark.parametrize("kind", ["bert_scratch", "mamba_scratch"])
def test_learns_and_restores_the_best(kind: str, tmp_path: Path) -> None:
    overrides = ["trainer.epochs=6", "trainer.lr=0.01", "trainer.batch_size=8"]
    if kind == "mamba_scratch":
        made = trainer(*overrides)
        precision, clock = made.open()
        _, _, network, tokenizer = make(kind)
        objective, val = Classification(tokenizer.pad_token_id), examples(tokenizer, 32, seed=9)
        state = made.fit(
            network.module, objective, examples(tokenizer, 64), val, fresh=(),
            audit=lambda _: None, precision=precision, clock=clock, recorder=Recorder(),
            folder=tmp_path,
        )  # fmt: skip
    else:
        state, _ = fit(tmp_path, *overrides)
        objective = state.objective
        val = examples(make(kind)[3], 32, seed=9)
    assert state.best is not None
    assert state.best > 0.9
    again = evaluate(state.model, val, objective, Precision("fp32", CPU), 32)
    assert again.scores["f1_weighted"] == pytest.approx(state.best)
    scores = [row["val_f1_weighted"] for row in state.history if "val_f1_weighted" in row]
    assert state.best == max(scores)


def test_the_weights_of_the_best_evaluation_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two evaluations has the higher score."""
    falling, models = iter([0.9, 0.5]), []
    monkeypatch.setattr(Classification, "scores", lambda *_: {"f1_weighted": next(falling)})
    kept: dict[int, torch.Tensor] = {}

    def keep(step: int) -> None:
        kept[step] = torch.cat([p.detach().flatten() for p in models[0].parameters()])

    recorder = CallingRecorder(keep)
    state, _ = short_fit(tmp_path, "trainer.eval_every=2", prepare=models.append, recorder=recorder)
    assert (state.step, state.best_step, state.best) == (4, 2, 0.9)
    restored = torch.cat([p.detach().flatten() for p in state.model.parameters()])
    assert torch.equal(restored, kept[2])
    assert not torch.equal(restored, kept[4])


@pytest.mark.usefixtures("unprobed")
def test_dropout_is_off_only_in_evaluations(tmp_path: Path) -> None:
    modes: list[bool] = []

    def prepare(model: nn.Module) -> None:
        model.register_forward_pre_hook(lambda module, _: modes.append(module.training))

    short_fit(tmp_path, "trainer.eval_every=1", prepare=prepare)
    assert modes == [True, False] * 4


def test_same_seed_same_weights(tmp_path: Path) -> None:
    runs = [fit(tmp_path / str(i), "trainer.epochs=1")[0] for i in range(2)]
    first, second = (r.model.state_dict() for r in runs)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_evaluations_when_due_and_early_stopping(tmp_path: Path) -> None:
    every = ["trainer.batch_size=16", "trainer.eval_every=3", "trainer.epochs=2"]
    _, recorder = fit(tmp_path, *every)
    assert [s for s, v in recorder.values if "val_loss" in v] == [3, 6, 8]
    still = ["trainer.lr=0.0", "trainer.patience=2", "trainer.epochs=9"]
    state, recorder = fit(tmp_path, *still)
    assert [s for s, v in recorder.values if "val_loss" in v] == [4, 8, 12]
    assert (state.best_step, state.step) == (4, 12)
    # Patience counts the evaluations from min_steps on.
    state, _ = fit(tmp_path / "minimum", *still, "trainer.min_steps=12")
    assert (state.best_step, state.step) == (4, 16)
    _, recorder = fit(tmp_path / "seldom", *still, "trainer.log_every=5")
    assert [s for s, v in recorder.values if "train_loss" in v] == [5, 10, 12]


def test_max_steps_ends_the_run(tmp_path: Path) -> None:
    state, recorder = fit(tmp_path, "trainer.max_steps=3", "trainer.batch_size=4")
    assert state.step == 3
    assert recorder.values[-1][0] == 3
    assert "val_f1_weighted" in recorder.values[-1][1]


def test_dropout_is_ours_while_training_alone(tmp_path: Path) -> None:
    seen: list[type[nn.Module]] = []
    state, _ = fit(tmp_path, audit=lambda model: seen.extend(type(m) for m in model.modules()))
    after = [type(m) for m in state.model.modules()]
    assert Dropout in seen
    assert nn.Dropout not in seen
    assert Dropout not in after
    assert seen.count(Dropout) == after.count(nn.Dropout)


def test_audit_stops_the_run_at_the_first_step(tmp_path: Path) -> None:
    def refuse(_: nn.Module) -> None:
        raise UserError("nothing trains")

    with pytest.raises(UserError, match="nothing trains"):
        fit(tmp_path, audit=refuse)


def test_low_precision_trains_and_keeps_fp32_weights(tmp_path: Path) -> None:
    for kind in ("bf16", "fp16"):
        state, _ = fit(tmp_path, f"trainer.precision={kind}", "trainer.epochs=4", "trainer.lr=0.01")
        assert all(p.dtype == torch.float32 for p in state.model.parameters())
        assert state.best is not None
        assert state.best > 0.8


@pytest.mark.parametrize(
    "override",
    ["trainer.epochs=0", "trainer.lr=-1.0", "trainer.warmup_share=1.5", "trainer.eval_every=0",
     "trainer.clip_norm=0", "trainer.clip_norm=-0.0"],
)  # fmt: skip
def test_values_out_of_range_are_refused(override: str) -> None:
    with pytest.raises(Exception, match=override.split("=")[0].replace(".", r"\.")):
        trainer(override)


def test_evaluation_keeps_the_order_and_averages_over_reviews() -> None:
    _, _, network, tokenizer = make("bert", "none", "model.dropout=0.0")
    data = examples(tokenizer, 21)
    found = evaluate(
        network.module, data, Classification(tokenizer.pad_token_id), Precision("fp32", CPU), 4
    )
    batch = pad(data.input_ids, tokenizer.pad_token_id)
    with torch.no_grad():
        expected = network.module.eval()(**batch).logits
    torch.testing.assert_close(found.outputs, expected, atol=1e-5, rtol=1e-5)
    loss = nn.functional.cross_entropy(expected, torch.tensor(data.labels))
    assert found.scores["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_the_gradient_norm_and_the_epoch_are_recorded(tmp_path: Path) -> None:
    norms = []

    def measure(model: nn.Module) -> None:
        # The audit sees the gradients of the first step, before they are clipped.
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))

    options = ("trainer.epochs=2", "trainer.batch_size=16", "trainer.log_every=1")
    _, recorder = fit(tmp_path, *options, "trainer.clip_norm=0.001", audit=measure)
    logged = [values for _, values in recorder.values if "train_loss" in values]
    assert logged[0]["grad_norm"] == pytest.approx(norms[0], rel=1e-5)
    assert norms[0] > 0.001
    # 64 reviews are 4 batches of 16.
    assert [values["epoch"] for values in logged] == [i / 4 for i in range(1, 9)]
