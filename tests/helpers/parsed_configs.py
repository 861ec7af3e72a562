"""Parse each config file once, because Hydra parses twenty files for each config."""

from __future__ import annotations

import functools
import io
import pickle
from typing import Any

from omegaconf import OmegaConf

# omegaconf's own function.
load = OmegaConf.load


def parse_once() -> None:
    """Let omegaconf keep what it parsed; a copy is made in a thirtieth of the time."""
    OmegaConf.load = staticmethod(_load)


def _load(file: Any) -> Any:
    return pickle.loads(_parse(file.read())) if isinstance(file, io.TextIOBase) else load(file)


@functools.cache
def _parse(text: str) -> bytes:
    return pickle.dumps(load(io.StringIO(text)))
