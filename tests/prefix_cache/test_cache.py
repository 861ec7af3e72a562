"""Test that training from cached activations equals training through the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hydra.utils import instantiate
from networks import NAMES, model_overrides
from prefixed import FP32, UPPER, WINDOWS, apply, config, prepared
from quick import quick
from torch import nn

from kinopoisk_ft import provenance
from kinopoisk_ft.adapters.audit import check_gradients
from kinopoisk_ft.data.leakage import Leakage
from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import Adapted, Network, list_blocks
from kinopoisk_ft.models.saving import load_network, make_card, save_network
from kinopoisk_ft.prefix_cache.cache import PrefixCache
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.notes import table_notes
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.reporting.table import tables
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.tasks.fit_network import FitInputs, fit_network
from kinopoisk_ft.tasks.pretrain import pretrain
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.evaluate import evaluate
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision
from kinopoisk_ft.training.state import State

CASES = [
    ("bert", ("freeze",), 2, ""),
    ("mamba", ("head",), 3, "last"),
    ("bert", ("head",), 3, "cls"),
    ("bert", ("lora", UPPER), 2, ""),
    ("mamba", ("freeze",), 2, ""),
    ("pooled", ("head",), 3, "mean"),
    ("pooled", ("freeze",), 2, ""),
    ("pooled", ("lora", UPPER), 2, ""),
    ("mamba", ("freeze", "adapter.layers=3"), 3, "last"),
    ("mamba", ("head", "model.pooling=mean"), 3, "mean"),
    ("mamba", ("lora", UPPER), 2, ""),
    ("mamba", ("head", WINDOWS), 3, "last"),
    ("pooled", ("lora", UPPER, WINDOWS, "model.window_pooling=attention"), 2, ""),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of cached activations."""
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hidden"


def train(
    folder: Path, adapted: Adapted, objective: Classification, parts: Any, *overrides: str
) -> State:
    base = ["model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu", "trainer.lr=1e-3",
            "trainer.epochs=2", "trainer.batch_size=4", "trainer.accumulate=2",
            "trainer.log_every=1"]  # fmt: skip
    trainer: Trainer = instantiate(config(*base, *overrides).trainer)
    precision, clock = trainer.open()
    # Dropout in the upper layers is random.
    torch.manual_seed(1)
    return trainer.fit(
        adapted.module, objective, parts["train"], parts["val"], fresh=adapted.fresh,
        audit=check_gradients, precision=precision, clock=clock, recorder=Nowhere(), folder=folder,
    )  # fmt: skip


class Nowhere:
    def metrics(self, values: dict[str, float], step: int) -> None:
        """Discard the values."""


def hold_in_evaluation(network: Network, layers: int) -> None:
    """Keep the embeddings and the lower `layers` in evaluation mode, also in the training loop."""
    below = [network.module.get_submodule(name) for name in network.embeddings]
    for part in [*below, *list_blocks(network)[:layers]]:
        part.eval()
        part.train = lambda mode=True, part=part: part  # type: ignore[method-assign]


def trained(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


@pytest.mark.parametrize(("kind", "adapter", "layer", "pooling"), quick(CASES, 2))
def test_run_equals_the_run_through_the_whole_model(
    kind: str, adapter: tuple[str, ...], layer: int, pooling: str, tmp_path: Path
) -> None:
    """The same losses, weights and test logits as with the frozen layers in evaluation mode."""
    network, whole, parts, tokenizer = prepared(kind, *adapter)
    hold_in_evaluation(network, layer)
    objective = Classification(tokenizer.pad_token_id)
    expected = train(tmp_path / "whole", whole, objective, parts)
    _, adapted, cached, _ = apply(kind, "fp32", *adapter)
    assert (cached.split.layer, cached.split.pooling) == (layer, pooling)
    found = train(tmp_path / "cached", adapted, cached.make_objective(), cached.parts)
    assert found.tokens == expected.tokens
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    torch.testing.assert_close(trained(adapted.module), trained(whole.module), atol=1e-5, rtol=1e-5)
    through_cache = evaluate(adapted.module, cached.parts["test"], cached.make_objective(), FP32, 5)
    through_model = evaluate(adapted.module, parts["test"], objective, FP32, 5)
    torch.testing.assert_close(through_cache.outputs, through_model.outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", quick(["bert", "pooled", "mamba"], 1))
def test_half_precision_on_disk_moves_logits_by_a_thousandth(kind: str) -> None:
    _, adapted, cached, tokenizer = apply(kind, "fp16", "freeze")
    test = cached.parts["test"]
    assert test.activations[0].dtype == np.float16
    ours = evaluate(adapted.module, test, cached.make_objective(), FP32, 5).outputs
    objective = Classification(tokenizer.pad_token_id)
    whole = evaluate(adapted.module, test, objective, FP32, 5).outputs
    torch.testing.assert_close(ours, whole, atol=1e-3, rtol=1e-3)
    assert not torch.equal(ours, whole)


def test_low_precision_runs_through_the_cache(tmp_path: Path) -> None:
    """Under autocast, the logits are those of the whole model under autocast."""
    network, adapted, parts, tokenizer = prepared("bert", "freeze")
    bf16 = Precision("bf16", torch.device("cpu"))
    made = PrefixCache("fp32", tokenizer.pad_token_id, bf16, 8)
    cached = made.apply(network, adapted.module, parts)
    objective = Classification(tokenizer.pad_token_id)
    whole = evaluate(adapted.module, parts["test"], objective, bf16, 5).outputs
    ours = evaluate(adapted.module, cached.parts["test"], cached.make_objective(), bf16, 5).outputs
    torch.testing.assert_close(ours, whole, atol=2e-3, rtol=2e-2)
    state = train(
        tmp_path, adapted, cached.make_objective(), cached.parts, "trainer.precision=bf16"
    )
    assert state.step == 10


def test_the_model_stays_whole_and_saves_as_usual(tmp_path: Path) -> None:
    for kind, adapter in (("bert", ("freeze",)), ("pooled", ("head",)), ("mamba", ("lora", UPPER))):
        names = list(prepared(kind, *adapter)[1].module.state_dict())
        network, adapted, cached, tokenizer = apply(kind, "fp32", *adapter)
        train(
            tmp_path / kind, adapted, cached.make_objective(), cached.parts, "trainer.max_steps=3"
        )
        assert list(adapted.module.state_dict()) == names
        folder = tmp_path / kind / "model"
        save_network(
            network,
            adapted,
            tokenizer,
            make_card(network, adapted, NAMES, max_length=64),
            folder,
        )
        loaded, _, _ = load_network(folder)
        test = cached.parts["test"]
        ours = evaluate(adapted.module, test, cached.make_objective(), FP32, 5).outputs
        with torch.no_grad():
            theirs = loaded(**pad(test.input_ids, tokenizer.pad_token_id)).logits
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "adapter", "message"),
    [
        ("bert", ("none",), "bert.embeddings.word_embeddings.weight' is trained"),
        ("bert", ("bitfit",), "bert.embeddings.LayerNorm.bias' is trained"),
        ("bert", ("lora",), r"layer\.0\..*\.query\.lora_A\.default\.weight' is trained"),
        ("mamba", ("lora",), r"layers\.0\.mixer\.in_proj\.lora_A\.default\.weight' is trained"),
        ("pooled", ("freeze", "adapter.layers=0"), r"layer\.0\..*' is trained"),
        ("mamba", ("head", "model.pooling=last_position"), "reads the padding"),
    ],
)
def test_impossible_cache_is_refused_with_the_reason(
    kind: str, adapter: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        apply(kind, "fp32", *adapter)


class Notebook(Tracker):
    """A tracker that keeps metrics and tags."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.kept |= values

    def tags(self, values: dict[str, str]) -> None:
        self.kept |= values


def test_every_run_records_what_the_cache_cost_to_build(tmp_path: Path) -> None:
    """Test predictions are those of the saved model; the clock has a section for the cache."""
    rows = [pd.DataFrame({"text": t, "label": y}) for t, y in (tiny.reviews(n) for n in (24, 8, 9))]
    nothing = Leakage({}, None, 0.5, 1.0)
    data = DataSplit(*rows, NAMES, {}, "", "", Preprocessing(64), nothing)
    settings = ["trainer.prefix_cache=fp32", "trainer.max_steps=2", "trainer.precision=fp32"]
    kept, fitted = [], []
    for folder in (tmp_path / "first", tmp_path / "second"):
        cfg = config(*model_overrides("bert"), "adapter=head", *settings)
        recipe, adapter, trainer = (
            instantiate(cfg[key]) for key in ("model", "adapter", "trainer")
        )
        tracker = Notebook()
        fitted.append(fit_network(recipe, FitInputs(adapter, trainer, data, tracker, folder, {})))
        kept.append(tracker.kept)
    assert [run["prefix_cache"] for run in kept] == ["built", "found"]
    for name in ("prefix_build_seconds", "prefix_val_build_seconds", "prefix_test_build_seconds"):
        assert kept[0][name] == kept[1][name] > 0
    assert all(run.seconds["prefix"] > 0 for run in fitted)
    predictor = Predictor(tmp_path / "second" / "model", "cpu")
    ours = predictor.probabilities(data.test["text"].tolist())
    np.testing.assert_allclose(fitted[1].test_probabilities, ours, atol=1e-5)


def test_other_hardware_builds_its_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run must not be charged with the time that another machine took."""
    origins = []
    for processor in ("fast", "fast", "slow"):
        monkeypatch.setattr(provenance, "get_processor", lambda name=processor: name)
        origins.append(apply("bert", "fp32", "head")[2].origin)
    assert origins == ["built", "found", "built"]


def test_report_adds_the_build_time_to_the_times_of_a_run() -> None:
    metrics = {"test_accuracy": 0.9, "test_f1_weighted": 0.9, "test_f1_macro": 0.9}
    metrics |= {"train_seconds": 10.0, "eval_seconds": 1.0}
    cost = {"prefix_build_seconds": 60.0, "prefix_test_build_seconds": 20.0}
    runs = [
        TrainedRun(
            run_id=name, approach=name, model="bert", adapter="freeze", seed="0", data="d",
            split_digest="s", source_digest="s", device="cpu", commit="", start_time=0,
            settings={}, metrics=metrics | more,
        )
        for name, more in (("cached", cost), ("plain", {}))
    ]  # fmt: skip
    (table,) = tables(runs, {})
    times = {row.name: (row.mean("train_seconds"), row.mean("eval_seconds")) for row in table.rows}
    assert times == {"cached": (70.0, 21.0), "plain": (10.0, 1.0)}
    (note,) = [note for note in table_notes(table, Locale("en")) if "computed only once" in note]
    assert ": cached." in note


def test_pretraining_refuses_a_cache() -> None:
    cfg = config("model=bert_scratch", "trainer.prefix_cache=fp32")
    with pytest.raises(UserError, match="pretraining trains every layer"):
        pretrain(cfg, Notebook(), "", Path(), mask_share=0.15, save_to="base")
