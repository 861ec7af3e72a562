"""Jobs side by side: each has its GPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from kinopoisk_ft.sweeps.device_pool import own_device


def test_jobs_share_devices_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with ExitStack() as others:
        first = ExitStack()
        first.enter_context(own_device(tmp_path))
        others.enter_context(own_device(tmp_path))
        first.close()  # the one that ends first is free for the next, whatever the next's number
        held = [others.enter_context(own_device(tmp_path)) for _ in range(5)]
        assert held == [0, 2, 0, 1, 2]
    assert chosen == [0, 1, 0, 2, 0, 1, 2]
    with own_device(tmp_path) as device:
        assert device == 0


@pytest.mark.parametrize("devices", [0, 1])
def test_one_device_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with own_device(tmp_path) as device:
        assert device is None
    assert list(tmp_path.iterdir()) == []
