"""Test files of cached activations: reused, shared, damaged and too large ones."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prefixed import FP32, UPPER, apply, examples, prepared
from quick import quick

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.network import list_blocks
from kinopoisk_ft.prefix_cache import storage
from kinopoisk_ft.prefix_cache.cache import PrefixCache
from kinopoisk_ft.training.precision import Precision


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of cached activations."""
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hidden"


def test_adapters_with_the_same_layers_below_share_one_file(cache: Path) -> None:
    first = apply("bert", "fp32", "freeze")[2]
    assert (first.origin, len(list(cache.glob("*/*.npy")))) == ("built", 3)
    for adapter in (("freeze",), ("lora", UPPER)):
        again = apply("bert", "fp32", *adapter)[2]
        assert again.origin == "found"
        assert again.build_seconds == first.build_seconds
    assert len(list(cache.glob("*/*.npy"))) == 3


def test_whatever_changes_the_activations_makes_other_files(cache: Path) -> None:
    apply("bert", "fp32", "freeze")
    network, adapted, parts, tokenizer = prepared("bert", "freeze")
    with torch.no_grad():
        list_blocks(network)[1].output.dense.bias[0] += 1e-3  # type: ignore[union-attr,index]
    moved = PrefixCache("fp32", tokenizer.pad_token_id, FP32, 8)
    assert moved.apply(network, adapted.module, parts).origin == "built"
    assert apply("bert", "fp16", "freeze")[2].origin == "built"
    assert apply("bert", "fp32", "freeze", "adapter.layers=1")[2].origin == "built"
    network, adapted, parts, tokenizer = prepared("bert", "freeze")
    bf16 = Precision("bf16", torch.device("cpu"))
    low = PrefixCache("fp32", tokenizer.pad_token_id, bf16, 8)
    assert low.apply(network, adapted.module, parts).origin == "built"
    assert len(list(cache.iterdir())) == 5
    network, adapted, parts, tokenizer = prepared("bert", "freeze")
    parts["val"] = examples(tokenizer, 12, 77)
    other = PrefixCache("fp32", tokenizer.pad_token_id, FP32, 8)
    assert other.apply(network, adapted.module, parts).origin == "built"
    assert len(list(cache.glob("*/*.npy"))) == 5 * 3 + 1


@pytest.mark.parametrize("damage", quick(["one byte", "card", "truncated", "no data"], 2))
def test_damaged_file_is_rebuilt(
    damage: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = apply("bert", "fp32", "freeze")[2].parts["train"]
    expected = np.array(first.activations[0])
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
    assert np.array_equal(again.parts["train"].activations[0], expected)
    assert [r.message for r in caplog.records if "will be rebuilt" in r.message]
    assert apply("bert", "fp32", "freeze")[2].origin == "found"


def test_interrupted_build_leaves_nothing_that_looks_complete(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*args: Any) -> Any:
        yield 0, np.ones((1, 16), np.float32)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PrefixCache, "_compute", stops)
        with pytest.raises(KeyboardInterrupt):
            apply("bert", "fp32", "freeze")
    assert not list(cache.glob("*/*.npy")) + list(cache.glob("*/*.part"))
    assert apply("bert", "fp32", "freeze")[2].origin == "built"


def test_activations_are_computed_in_smaller_batches_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = apply("bert", "fp32", "freeze")[2]
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "other"))
    network, adapted, parts, tokenizer = prepared("bert", "freeze")
    most = 4 * int(parts["train"].lengths.max())

    def check(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    adapted.module.register_forward_pre_hook(check, with_kwargs=True)
    made = PrefixCache("fp32", tokenizer.pad_token_id, FP32, 8)
    halved = made.apply(network, adapted.module, parts)
    assert caplog.text.count("in the prefix cache with 8 rows at once; retrying with 4") == 1
    assert not list((tmp_path / "other").rglob("*.part"))
    for name, part in whole.parts.items():
        for row in range(len(part)):
            mine, theirs = (p.parts[name].activations for p in (halved, whole))
            np.testing.assert_allclose(mine[row], theirs[row], atol=1e-5)


def test_of_two_jobs_one_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, waiting = threading.Event(), threading.Event()
    order = []

    def first() -> None:
        with storage.acquire_lock(tmp_path):
            inside.set()
            waiting.wait(10)
            order.append("first")

    other = threading.Thread(target=first)
    other.start()
    assert inside.wait(10)
    monkeypatch.setattr(storage.log, "info", lambda *args: waiting.set())
    with storage.acquire_lock(tmp_path):
        order.append("second")
    other.join()
    assert order == ["first", "second"]


def test_full_disk_is_reported_before_anything_is_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = storage.MARGIN + 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(UserError, match=r"1\.0 GiB(?s:.*)prefix_cache=fp16"):
        apply("bert", "fp32", "freeze")
    assert not list(cache.glob("*/*.npy"))


def test_value_too_large_for_fp16_is_reported(tmp_path: Path) -> None:
    file = storage.CachedActivations(tmp_path / "x.npy", np.array([1]), 2, np.dtype(np.float16))
    with pytest.raises(UserError, match="70000 is too large for fp16"):
        file.write([(0, np.array([[1, 7e4]], np.float32))], {})
    assert not list(tmp_path.iterdir())
