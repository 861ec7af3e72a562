"""Make networks with reproducible weights, and their data, for tests of the prefix cache."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import tiny
import torch
from composing import change_config
from hydra.utils import instantiate
from networks import NAMES, adapter_overrides, model_overrides
from omegaconf import DictConfig

from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.tokens import find_windows
from kinopoisk_ft.models.network import Adapted, Network
from kinopoisk_ft.prefix_cache.cache import CachedData, PrefixCache
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.precision import Precision

FP32 = Precision("fp32", torch.device("cpu"))
WINDOWS = "+model.reads_windows=true"
UPPER = "+adapter.config.layers_to_transform=[2]"


@functools.cache
def config(*overrides: str) -> DictConfig:
    return change_config(overrides)


def examples(tokenizer: Any, count: int, seed: int) -> Examples:
    texts, labels = tiny.reviews(count, seed)
    return Examples(tokenizer(texts)["input_ids"], np.array(labels))


def prepared(kind: str, *adapter: str) -> tuple[Network, Adapted, dict[str, Examples], Any]:
    """Return a network, its adapted version, data and tokenizer; the weights are reproducible."""
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
    if recipe.reads_windows:
        windows = find_windows(tokenizer, Preprocessing(16, "windows"))
        parts = {name: replace(part, windows=windows) for name, part in parts.items()}
    return network, adapted, parts, tokenizer


def apply(kind: str, dtype: str, *adapter: str) -> tuple[Network, Adapted, CachedData, Any]:
    network, adapted, parts, tokenizer = prepared(kind, *adapter)
    made = PrefixCache(dtype, tokenizer.pad_token_id, FP32, 8)
    return network, adapted, made.apply(network, adapted.module, parts), tokenizer
