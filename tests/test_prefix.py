"""Training from cached states of frozen layers equals training through the whole model."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from composing import compose_config
from hydra.utils import instantiate
from networks import NAMES, adapter_overrides, model_overrides
from omegaconf import DictConfig
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MambaModel,
    ModernBertConfig,
    RobertaConfig,
)  # fmt: skip

from kinopoisk_ft.adapters.audit import check_gradients
from kinopoisk_ft.adapters.base import Adapted
from kinopoisk_ft.adapters.plain import Freeze, Head
from kinopoisk_ft.data import hidden
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.fitting import fit_network
from kinopoisk_ft.models.heads import describe_encoder
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.models.prefix import FrozenPrefix, Seam, blocks_of, find_prefix
from kinopoisk_ft.models.saving import load_network, make_card, save_network
from kinopoisk_ft.prefix import PrefixCache, Prefixed
from kinopoisk_ft.pretraining import pretrain
from kinopoisk_ft.reporting.notes import table_notes
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.reporting.table import tables
from kinopoisk_ft.reporting.words import Words
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.tracking.base import NoTracker
from kinopoisk_ft.training.batching import Examples, pad
from kinopoisk_ft.training.evaluate import evaluate
from kinopoisk_ft.training.loop import Trainer
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import Precision
from kinopoisk_ft.training.state import State

FP32 = Precision("fp32", torch.device("cpu"))
UPPER = "+adapter.config.layers_to_transform=[2]"
CASES = [
    ("bert", ("freeze",), 2, ""),
    ("bert", ("head",), 3, "cls"),
    ("bert", ("lora", UPPER), 2, ""),
    ("pooled", ("freeze",), 2, ""),
    ("pooled", ("head",), 3, "mean"),
    ("pooled", ("lora", UPPER), 2, ""),
    ("mamba", ("freeze",), 2, ""),
    ("mamba", ("freeze", "adapter.layers=3"), 3, "last"),
    ("mamba", ("head",), 3, "last"),
    ("mamba", ("head", "model.pooling=mean"), 3, "mean"),
    ("mamba", ("lora", UPPER), 2, ""),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached states, empty."""
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hidden"


@functools.cache
def config(*overrides: str) -> DictConfig:
    return compose_config(overrides)


def examples(tokenizer: Any, count: int, seed: int) -> Examples:
    texts, labels = tiny.reviews(count, seed)
    return Examples(tokenizer(texts)["input_ids"], np.array(labels))


def prepared(kind: str, *adapter: str) -> tuple[Network, Adapted, dict[str, Examples], Any]:
    """Return network, the same adapted, its data and tokenizer, each time with equal weights."""
    torch.manual_seed(0)
    name, *more = adapter
    cfg = config(*model_overrides(kind), *adapter_overrides(name), *more)
    recipe = instantiate(cfg.model)
    tokenizer = recipe.load_tokenizer(())
    network = recipe.build(NAMES, tokenizer)
    adapted = instantiate(cfg.adapter).apply(network)
    parts = {
        name: examples(tokenizer, count, seed)
        for seed, (name, count) in enumerate((("train", 40), ("val", 12), ("test", 14)))
    }
    return network, adapted, parts, tokenizer


def apply(kind: str, dtype: str, *adapter: str) -> tuple[Network, Adapted, Prefixed, Any]:
    network, adapted, parts, tokenizer = prepared(kind, *adapter)
    made = PrefixCache(dtype, tokenizer.pad_token_id, FP32, 8)
    return network, adapted, made.apply(network, adapted.module, parts), tokenizer


def train(
    folder: Path, adapted: Adapted, objective: Classification, parts: Any, *overrides: str
) -> State:
    base = ["model=bert_scratch", "trainer.precision=fp32", "trainer.device=cpu", "trainer.lr=1e-3",
            "trainer.epochs=2", "trainer.batch_size=4", "trainer.accumulate=2",
            "trainer.log_every=1"]  # fmt: skip
    trainer: Trainer = instantiate(config(*base, *overrides).trainer)
    precision, clock = trainer.open()
    torch.manual_seed(1)  # the dropout of the upper layers
    return trainer.fit(
        adapted.module, objective, parts["train"], parts["val"], fresh=adapted.fresh,
        audit=check_gradients, precision=precision, clock=clock, recorder=Nowhere(), folder=folder,
    )  # fmt: skip


class Nowhere:
    def metrics(self, values: dict[str, float], step: int) -> None:
        """Drop the values."""


def hold_in_evaluation(network: Network, layers: int) -> None:
    """Keep what lies below a layer in evaluation mode whatever the loop says."""
    below = [network.module.get_submodule(name) for name in network.embeddings]
    for part in [*below, *blocks_of(network)[:layers]]:
        part.eval()
        part.train = lambda mode=True, part=part: part  # type: ignore[method-assign]


def trained(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


@pytest.mark.parametrize(("kind", "adapter", "layer", "pooling"), CASES)
def test_run_equals_the_run_through_the_whole_model(
    kind: str, adapter: tuple[str, ...], layer: int, pooling: str, tmp_path: Path
) -> None:
    """The same losses, weights and test logits as with the frozen layers in evaluation mode."""
    network, whole, parts, tokenizer = prepared(kind, *adapter)
    hold_in_evaluation(network, layer)
    objective = Classification(tokenizer.pad_token_id)
    expected = train(tmp_path / "whole", whole, objective, parts)
    _, adapted, prefixed, _ = apply(kind, "fp32", *adapter)
    seam = prefixed.objective.resume.__self__.seam  # type: ignore[attr-defined]
    assert (seam.layer, seam.pooling) == (layer, pooling)
    found = train(tmp_path / "cached", adapted, prefixed.objective, prefixed.parts)
    assert found.tokens == expected.tokens
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    torch.testing.assert_close(trained(adapted.module), trained(whole.module), atol=1e-5, rtol=1e-5)
    through_cache = evaluate(adapted.module, prefixed.parts["test"], prefixed.objective, FP32, 5)
    through_model = evaluate(adapted.module, parts["test"], objective, FP32, 5)
    torch.testing.assert_close(through_cache.outputs, through_model.outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "pooled", "mamba"])
def test_half_precision_on_disk_moves_logits_by_a_thousandth(kind: str) -> None:
    _, adapted, prefixed, tokenizer = apply(kind, "fp16", "freeze")
    test = prefixed.parts["test"]
    assert test.hidden is not None
    assert test.hidden[0].dtype == np.float16
    ours = evaluate(adapted.module, test, prefixed.objective, FP32, 5).outputs
    objective = Classification(tokenizer.pad_token_id)
    whole = evaluate(adapted.module, test, objective, FP32, 5).outputs
    torch.testing.assert_close(ours, whole, atol=1e-3, rtol=1e-3)
    assert not torch.equal(ours, whole)


@pytest.mark.parametrize(("kind", "layer"), [("bert", 2), ("mamba", 2)])
def test_states_are_those_of_transformers(kind: str, layer: int) -> None:
    """Hugging Face's own hidden states, review by review, without padding."""
    network, _, prefixed, _ = apply(kind, "fp32", "freeze")
    reference = (MambaModel if kind == "mamba" else AutoModel).from_pretrained(network.base).eval()
    part = prefixed.parts["train"]
    assert part.hidden is not None
    for row in (0, 7, 39):
        ids = torch.tensor([part.input_ids[row]])
        with torch.no_grad():
            output = reference(ids, output_hidden_states=True)
        theirs = output.hidden_states[layer - (kind == "mamba")][0]
        ours = torch.tensor(np.array(part.hidden[row]))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_model_stays_whole_and_saves_as_usual(tmp_path: Path) -> None:
    for kind, adapter in (("bert", ("freeze",)), ("pooled", ("head",)), ("mamba", ("lora", UPPER))):
        names = list(prepared(kind, *adapter)[1].module.state_dict())
        network, adapted, prefixed, tokenizer = apply(kind, "fp32", *adapter)
        train(tmp_path / kind, adapted, prefixed.objective, prefixed.parts, "trainer.max_steps=3")
        assert list(adapted.module.state_dict()) == names
        folder = tmp_path / kind / "model"
        save_network(network, adapted, tokenizer, make_card(network, adapted, NAMES, 64), folder)
        loaded, _, _ = load_network(folder)
        test = prefixed.parts["test"]
        ours = evaluate(adapted.module, test, prefixed.objective, FP32, 5).outputs
        with torch.no_grad():
            theirs = loaded(**pad(test.input_ids, tokenizer.pad_token_id)).logits
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_adapters_with_the_same_layers_below_share_one_file(cache: Path) -> None:
    first = apply("bert", "fp32", "freeze")[2]
    assert (first.origin, len(list(cache.glob("*/*.npy")))) == ("built", 3)
    for adapter in (("freeze",), ("lora", UPPER)):
        again = apply("bert", "fp32", *adapter)[2]
        assert again.origin == "found"
        assert again.build_seconds == first.build_seconds
    assert len(list(cache.glob("*/*.npy"))) == 3


def test_whatever_changes_the_states_makes_other_files(cache: Path) -> None:
    apply("bert", "fp32", "freeze")
    network, adapted, parts, tokenizer = prepared("bert", "freeze")
    with torch.no_grad():
        blocks_of(network)[1].output.dense.bias[0] += 1e-3  # type: ignore[union-attr,index]
    moved = PrefixCache("fp32", tokenizer.pad_token_id, FP32, 8)
    assert moved.apply(network, adapted.module, parts).origin == "built"
    assert apply("bert", "fp16", "freeze")[2].origin == "built"
    assert apply("bert", "fp32", "freeze", "adapter.layers=1")[2].origin == "built"
    assert len(list(cache.iterdir())) == 4
    network, adapted, parts, tokenizer = prepared("bert", "freeze")
    parts["val"] = examples(tokenizer, 12, 77)
    other = PrefixCache("fp32", tokenizer.pad_token_id, FP32, 8)
    assert other.apply(network, adapted.module, parts).origin == "built"
    assert len(list(cache.glob("*/*.npy"))) == 4 * 3 + 1


@pytest.mark.parametrize("damage", ["truncated", "one byte", "no data", "card"])
def test_damaged_file_is_made_anew(
    damage: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = apply("bert", "fp32", "freeze")[2].parts["train"]
    assert first.hidden is not None
    expected = np.array(first.hidden[0])
    file = max(cache.glob("*/*.npy"), key=lambda f: f.stat().st_size)
    raw = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(raw[:-4])
    elif damage == "one byte":
        raw[200] ^= 1
        file.write_bytes(raw)
    elif damage == "no data":
        file.unlink()
    else:
        file.with_suffix(".json").write_text("{")
    caplog.clear()
    again = apply("bert", "fp32", "freeze")[2]
    assert again.origin == "built"
    assert again.parts["train"].hidden is not None
    assert np.array_equal(again.parts["train"].hidden[0], expected)
    assert [r.message for r in caplog.records if "is made anew" in r.message]
    assert apply("bert", "fp32", "freeze")[2].origin == "found"


def test_interrupted_build_leaves_nothing_that_is_taken_for_whole(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*args: Any) -> Any:
        yield 0, np.ones((1, 16), np.float32)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kinopoisk_ft.prefix.hidden_states", stops)
        with pytest.raises(KeyboardInterrupt):
            apply("bert", "fp32", "freeze")
    assert not list(cache.glob("*/*.npy")) + list(cache.glob("*/*.part"))
    assert apply("bert", "fp32", "freeze")[2].origin == "built"


def test_of_two_jobs_one_builds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    inside, waiting = threading.Event(), threading.Event()
    order = []

    def first() -> None:
        with hidden.only_one(tmp_path):
            inside.set()
            waiting.wait(10)
            order.append("first")

    other = threading.Thread(target=first)
    other.start()
    assert inside.wait(10)
    caplog.handler.emit = lambda record: waiting.set()  # type: ignore[method-assign]
    with hidden.only_one(tmp_path):
        order.append("second")
    other.join()
    assert order == ["first", "second"]


def test_full_disk_is_told_before_anything_is_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = hidden.MARGIN + 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(UserError, match=r"1\.0 GiB(?s:.*)prefix_cache=fp16"):
        apply("bert", "fp32", "freeze")
    assert not list(cache.glob("*/*.npy"))


def test_state_too_large_for_fp16_is_told(tmp_path: Path) -> None:
    file = hidden.HiddenFile(tmp_path / "x.npy", np.array([1]), 2, np.dtype(np.float16))
    with pytest.raises(UserError, match="70000 is too large for fp16"):
        file.write([(0, np.array([[1, 7e4]], np.float32))], {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "adapter", "told"),
    [
        ("bert", ("none",), "bert.embeddings.word_embeddings.weight' trains"),
        ("bert", ("bitfit",), "bert.embeddings.LayerNorm.bias' trains"),
        ("bert", ("lora",), r"layer\.0\.attention\.self\.query\.lora_A\.default\.weight' trains"),
        ("mamba", ("lora",), r"layers\.0\.mixer\.in_proj\.lora_A\.default\.weight' trains"),
        ("pooled", ("freeze", "adapter.layers=0"), r"layer\.0\..*' trains"),
        ("mamba", ("head", "model.pooling=last_position"), "reads the pads"),
    ],
)
def test_cache_that_cannot_be_is_refused_with_the_reason(
    kind: str, adapter: tuple[str, ...], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        apply(kind, "fp32", *adapter)


SIZES = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 64, "vocab_size": 90,
         "pad_token_id": 0}  # fmt: skip
FAMILY = {
    "roberta": RobertaConfig(**SIZES),
    "distilbert": DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=32, vocab_size=90),
    "modernbert": ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2, bos_token_id=1,
                                   eos_token_id=2, classifier_pooling="mean", local_attention=4),
    "electra": ElectraConfig(**SIZES, embedding_size=8),
    "deberta": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
}  # fmt: skip


def cut(name: str, adapter: Any) -> tuple[FrozenPrefix, nn.Module, dict[str, torch.Tensor]]:
    """Return Hugging Face's classifier of a family, cut, with a batch of reviews."""
    torch.manual_seed(0)
    config = FAMILY[name]
    module = AutoModelForSequenceClassification.from_config(config)
    heads = ["classifier", "pre_classifier", "head"]
    network = describe_encoder(module, config, "hf", heads, set(), None, None, "pooler")
    generator = torch.Generator().manual_seed(0)
    lengths = (40, 25, 9, 3)
    ids = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in lengths]
    batch = pad(ids, 0)
    return find_prefix(network, adapter.apply(network).module, batch), module, batch


@pytest.mark.parametrize(
    ("name", "adapter", "seam"),
    [
        ("roberta", Freeze(layers=2, lr=1.0), Seam(2)),
        ("roberta", Head(lr=1.0), Seam(3, pooling="cls")),
        ("distilbert", Freeze(layers=2, lr=1.0), Seam(2)),
        ("distilbert", Head(lr=1.0), Seam(3, pooling="cls")),
        ("modernbert", Freeze(layers=1, lr=1.0), Seam(1)),
        ("modernbert", Head(lr=1.0), Seam(3)),  # its head pools by the mean, behind a norm
    ],
)
def test_encoders_of_the_family_start_where_they_are_cut(
    name: str, adapter: Any, seam: Seam
) -> None:
    prefix, module, batch = cut(name, adapter)
    assert prefix.seam == seam
    with torch.no_grad():
        states = prefix.states(**batch)
        found = prefix.resume(states, batch["attention_mask"]).logits
        torch.testing.assert_close(found, module(**batch).logits, atol=1e-6, rtol=1e-5)
        other = prefix.resume(states.flip(0), batch["attention_mask"]).logits
    assert not torch.allclose(found, other, atol=1e-4), "the logits come from the states"


@pytest.mark.parametrize(
    ("name", "adapter", "told"),
    [
        ("electra", Head(lr=1.0), "cannot be started at layer 3"),
        ("electra", Freeze(layers=2, lr=1.0), "embeddings_project.weight' trains"),
        ("deberta", Head(lr=1.0), "cannot be started at layer 3"),
        ("deberta", Freeze(layers=2, lr=1.0), "rel_embeddings.weight' trains"),
    ],
)
def test_encoders_that_cannot_be_cut_are_refused(name: str, adapter: Any, told: str) -> None:
    """ELECTRA small projects its embeddings; DeBERTa's layers share trained relative positions."""
    with pytest.raises(UserError, match=told):
        cut(name, adapter)


def test_low_precision_runs_through_the_cache(tmp_path: Path) -> None:
    """The pass under autocast gives what the whole model gives under autocast."""
    network, adapted, parts, tokenizer = prepared("bert", "freeze")
    bf16 = Precision("bf16", torch.device("cpu"))
    made = PrefixCache("fp32", tokenizer.pad_token_id, bf16, 8)
    prefixed = made.apply(network, adapted.module, parts)
    objective = Classification(tokenizer.pad_token_id)
    whole = evaluate(adapted.module, parts["test"], objective, bf16, 5).outputs
    ours = evaluate(adapted.module, prefixed.parts["test"], prefixed.objective, bf16, 5).outputs
    torch.testing.assert_close(ours, whole, atol=2e-3, rtol=2e-2)
    state = train(tmp_path, adapted, prefixed.objective, prefixed.parts, "trainer.precision=bf16")
    assert state.step == 10


class Notebook(NoTracker):
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.kept |= values

    def tags(self, values: dict[str, str]) -> None:
        self.kept |= values


def test_run_says_what_the_prefix_cost_and_a_hit_the_same(tmp_path: Path) -> None:
    """Test predictions are those of the saved model; the clock has the pass under its own name."""
    rows = [pd.DataFrame({"text": t, "label": y}) for t, y in (tiny.reviews(n) for n in (24, 8, 9))]
    data = DataSplit(*rows, NAMES, {}, "", "")
    settings = ["trainer.prefix_cache=fp32", "trainer.max_steps=2", "trainer.precision=fp32"]
    kept, fitted = [], []
    for folder in (tmp_path / "first", tmp_path / "second"):
        cfg = config(*model_overrides("bert"), "adapter=head", *settings)
        recipe, adapter, trainer = (
            instantiate(cfg[key]) for key in ("model", "adapter", "trainer")
        )
        tracker = Notebook()
        fitted.append(fit_network(recipe, adapter, trainer, data, 64, tracker, folder))
        kept.append(tracker.kept)
    assert [run["prefix_cache"] for run in kept] == ["built", "found"]
    for name in ("prefix_build_seconds", "prefix_val_build_seconds", "prefix_test_build_seconds"):
        assert kept[0][name] == kept[1][name] > 0
    assert all(run.seconds["prefix"] > 0 for run in fitted)
    predictor = Predictor(tmp_path / "second" / "model", "cpu")
    ours = predictor.probabilities(data.test["text"].tolist())
    np.testing.assert_allclose(fitted[1].probabilities, ours, atol=1e-5)


def test_report_adds_what_a_run_owes_to_its_times() -> None:
    metrics = {"test_accuracy": 0.9, "test_f1_weighted": 0.9, "test_f1_macro": 0.9}
    metrics |= {"train_seconds": 10.0, "eval_seconds": 1.0}
    owed = {"prefix_build_seconds": 60.0, "prefix_test_build_seconds": 20.0}
    runs = [
        TrainedRun(
            run_id=name, approach=name, model="bert", adapter="freeze", seed="0", data="d",
            split_digest="s", source_digest="s", device="cpu", commit="", start_time=0,
            settings={}, metrics=metrics | more,
        )
        for name, more in (("cached", owed), ("plain", {}))
    ]  # fmt: skip
    (table,) = tables(runs)
    times = {row.name: (row.mean("train_seconds"), row.mean("eval_seconds")) for row in table.rows}
    assert times == {"cached": (70.0, 21.0), "plain": (10.0, 1.0)}
    (note,) = [note for note in table_notes(table, Words("en")) if "run once" in note]
    assert ": cached." in note


def test_pretraining_refuses_a_cache() -> None:
    cfg = config("model=bert_scratch", "trainer.prefix_cache=fp32")
    with pytest.raises(UserError, match="pretraining trains every layer"):
        pretrain(cfg, Notebook(), "", Path(), mask_share=0.15, save_to="base")
