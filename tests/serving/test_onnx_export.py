"""Test that exported models compute the logits of PyTorch, and that wrong ones are deleted."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
from networks import NAMES
from places import ROOT
from saved_networks import TEXTS, save

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import CARD, Card, read_card
from kinopoisk_ft.models.onnx_model import ONNX
from kinopoisk_ft.models.saving import load_network
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.models.tokenizers import load_tokenizer
from kinopoisk_ft.serving import onnx_export
from kinopoisk_ft.serving.attributions import explain
from kinopoisk_ft.serving.onnx_export import export_onnx
from kinopoisk_ft.serving.predictor import Predictor

# The rank in conf/adapter/lora.yaml; no size of the tiny BERT equals it.
RANK = 8
WINDOWS = "+model.reads_windows=true"
# Name, adapter, overrides, and whether the adapter is kept.
CASES: list[tuple[str, str, tuple[str, ...], bool]] = [
    ("pooled", "lora", (), False),
    ("mamba_scratch", "none", ("model.num_layers=1",), False),
    ("bert", "none", (), False),
    ("bert_scratch", "freeze", (), False),
    ("pooled", "lora", (), True),
    ("pooled", "lora", ("model.dtype=bf16",), False),
    ("bert", "dora", (), True),
    ("bert", "ia3", (), False),
    ("mamba", "lora", (), False),
    ("mamba", "lora", ("model.pooling=last_position",), True),
    ("mamba2", "lora", (), False),
    ("mamba2_scratch", "none", ("model.pooling=last",), False),
    ("pooled", "none", (WINDOWS, "model.window_pooling=attention"), False),
    ("mamba", "none", (WINDOWS, "model.window_pooling=max"), False),
    ("mamba2", "lora", (WINDOWS,), False),
]


def run_bare(folder: Path, ids: list[list[int]]) -> np.ndarray:
    """Return the logits of onnxruntime for tokens, computed without this project."""
    shape = (len(ids), max(map(len, ids)))
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)], mask[i, : len(row)] = row, 1
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return np.asarray(session.run(["logits"], inputs)[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT with one layer and LoRA."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    logits = save("bert_scratch", "lora", folder, "model.num_layers=1")
    torch.save(logits, folder.parent / "logits.pt")
    return folder


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    """The only exported folder of `make test`, because an export takes seconds."""
    check = export_onnx(model, model.parent / "onnx")
    assert (check.texts, check.same_labels) == (26, 26)
    assert check.difference < 1e-5
    return model.parent / "onnx"


def test_the_exported_logits_are_those_of_the_model(model: Path, exported: Path) -> None:
    compare(torch.load(model.parent / "logits.pt"), exported)
    assert not has_low_rank_factors(exported)
    assert not has_paths(exported)


def has_paths(folder: Path) -> bool:
    """Return whether a graph names files of this machine."""
    data = (folder / ONNX).read_bytes()
    return b".py" in data or str(ROOT).encode() in data


def has_low_rank_factors(folder: Path) -> bool:
    """Return whether a graph has matrices with the rank of LoRA as a size."""
    weights = onnx.load(folder / ONNX).graph.initializer
    return any(len(weight.dims) == 2 and RANK in weight.dims for weight in weights)


def compare(expected: torch.Tensor, folder: Path) -> None:
    """Compare logits of TEXTS with those of an exported folder, by this project and without it."""
    found = Predictor(folder, "cpu").logits(TEXTS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    tokenizer = load_tokenizer(str(folder))
    ids = tokenizer(TEXTS, truncation=True, max_length=64)["input_ids"]
    np.testing.assert_allclose(run_bare(folder, ids), expected, atol=1e-5)
    # Other batches, and a text of one token.
    np.testing.assert_allclose(run_bare(folder, ids[1:2]), expected[1:2], atol=1e-5)
    assert np.isfinite(run_bare(folder, [ids[1][:1]])).all()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "adapter", "more", "kept"), CASES)
def test_every_kind_of_network_is_exported(
    kind: str, adapter: str, more: tuple[str, ...], kept: bool, tmp_path: Path
) -> None:
    expected = save(kind, adapter, tmp_path / "model", *more)
    if WINDOWS in more:
        card = replace(read_card(tmp_path / "model"), truncation="windows", max_length=16)
        card.write(tmp_path / "model")
        expected = Predictor(tmp_path / "model", "cpu").logits(TEXTS)
    check = export_onnx(tmp_path / "model", tmp_path / "onnx", keep_adapter=kept)
    assert check.difference < 1e-4
    assert check.same_labels == check.texts
    if WINDOWS in more or "model.pooling=last_position" in more:
        found = Predictor(tmp_path / "onnx", "cpu").logits(TEXTS)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    else:
        compare(expected, tmp_path / "onnx")
    if "mamba" in kind and WINDOWS not in more:
        module, tokenizer, _ = load_network(tmp_path / "model")
        ids = torch.tensor([tokenizer(" ".join(TEXTS * 9))["input_ids"][:140]])
        with torch.no_grad():
            long = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        np.testing.assert_allclose(run_bare(tmp_path / "onnx", ids.tolist()), long, atol=1e-5)
    assert not kept or has_low_rank_factors(tmp_path / "onnx")
    assert not has_paths(tmp_path / "onnx")


def test_int8_stores_and_multiplies_integers(
    model: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_write_graph", copy_graph(exported))
    check = export_onnx(model, tmp_path, int8=True)
    graph = onnx.load(tmp_path / ONNX).graph
    assert "MatMulInteger" in {node.op_type for node in graph.node}
    matrices = [weight for weight in graph.initializer if len(weight.dims) > 1]
    kinds = {onnx.TensorProto.DataType.Name(weight.data_type) for weight in matrices}
    # Matrix products have int8 weights, embeddings uint8 weights; positions are int64.
    assert kinds == {"INT8", "UINT8", "INT64"}
    found, expected = (Predictor(place, "cpu").logits(TEXTS) for place in (tmp_path, model))
    assert 1e-6 < float((found - expected).abs().max()) < 0.1
    assert 1e-6 < check.difference < 0.1


def copy_graph(folder: Path) -> Callable[..., None]:
    """Return a replacement of `_write_graph` that copies an exported graph."""

    def copy(module: Any, card: Card, file: Path, _: Path) -> None:
        shutil.copy(folder / ONNX, file)

    return copy


def test_the_folder_has_the_tokenizer_and_the_card(model: Path, exported: Path) -> None:
    names = {"tokenizer.json", "tokenizer_config.json", CARD, ONNX}
    assert {file.name for file in exported.iterdir()} == names
    texts = [(place / "tokenizer.json").read_text("utf-8") for place in (exported, model)]
    # The truncation and padding of the last call do not belong to the model.
    found, expected = (json.loads(text) | {"truncation": None, "padding": None} for text in texts)
    assert found == expected
    assert replace(read_card(exported), kind="pooled", is_peft=True) == read_card(model)


def test_a_wrong_model_is_not_kept(
    model: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported, tmp_path / "wrong")
    graph = onnx.load(tmp_path / "wrong" / ONNX)
    (bias,) = (w for w in graph.graph.initializer if w.name.endswith("classifier.bias"))
    shifted = onnx.numpy_helper.to_array(bias) + np.float32(0.001)
    bias.CopyFrom(onnx.numpy_helper.from_array(shifted, bias.name))
    onnx.save(graph, tmp_path / "wrong" / ONNX)
    monkeypatch.setattr(onnx_export, "_write_graph", copy_graph(tmp_path / "wrong"))
    with pytest.raises(UserError, match=r"differ by up to 0\.001"):
        export_onnx(model, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_the_exporter_cannot_do_is_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.onnx.OnnxExporterError("step 1/3") from ValueError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match="no such operator"):
        export_onnx(model, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_requests_are_refused_before_anything_is_written(
    model: Path, exported: Path, tmp_path: Path
) -> None:
    texts, labels = tiny.reviews(20)
    (tmp_path / "tfidf").mkdir()
    estimator = Tfidf(ngrams=1, min_df=1, sublinear_tf=True, C=10.0, class_weight=None)
    estimator.fit_texts(texts, np.array(labels), 2).save(tmp_path / "tfidf")
    Card("tfidf", list(NAMES), 0).write(tmp_path / "tfidf")
    with pytest.raises(UserError, match="words of a Unicode text"):
        export_onnx(tmp_path / "tfidf", tmp_path / "onnx")
    with pytest.raises(UserError, match="cannot be exported again"):
        export_onnx(exported, tmp_path / "onnx")
    save("bert", "none", tmp_path / "plain")
    with pytest.raises(UserError, match="no adapter"):
        export_onnx(tmp_path / "plain", tmp_path / "onnx", keep_adapter=True)
    with pytest.raises(UserError, match="a file that does not belong"):
        export_onnx(model, tmp_path / "tfidf")
    assert not (tmp_path / "onnx").exists()


def test_a_model_is_exported_to_the_working_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: Path, *_: object) -> None:
        raise NotADirectoryError(folder)

    monkeypatch.setattr(onnx_export, "write_folder_atomically", stop)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotADirectoryError, match=tmp_path.name):
        export_onnx(model, Path())


def test_missing_packages_are_named(
    model: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"\.\[onnx\]"):
        export_onnx(model, tmp_path / "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"\.\[onnx\]"):
        Predictor(exported, "cpu")


def test_a_damaged_model_is_an_error(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "onnx")
    data = (exported / ONNX).read_bytes()
    (tmp_path / "onnx" / ONNX).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        Predictor(tmp_path / "onnx", "cpu")


def test_weights_outside_the_folder_are_not_read(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "onnx")
    graph = onnx.load(tmp_path / "onnx" / ONNX)
    weight = next(w for w in graph.graph.initializer if w.raw_data)
    (tmp_path / "secret").write_bytes(weight.raw_data)
    for key, value in (
        ("location", "../secret"),
        ("offset", "0"),
        ("length", str(len(weight.raw_data))),
    ):
        weight.external_data.add(key=key, value=value)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    (tmp_path / "onnx" / ONNX).write_bytes(graph.SerializeToString())
    with pytest.raises(UserError, match="damaged"):
        Predictor(tmp_path / "onnx", "cpu")


def test_an_exported_model_neither_explains_nor_runs_on_a_gpu(exported: Path) -> None:
    with pytest.raises(UserError, match="gradients"):
        explain(Predictor(exported), TEXTS[0])
    with pytest.raises(UserError, match="runs on the CPU"):
        Predictor(exported, "cuda")
