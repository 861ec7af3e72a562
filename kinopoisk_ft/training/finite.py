"""What to do about a loss or a gradient that is not finite."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.disk import write_plain, write_tensors, writing
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

BATCH = "bad_batch.safetensors"


def check_finite(
    state: State, micro_batches: list[dict[str, Tensor]], most: int, folder: Path
) -> None:
    """Tell of steps that were skipped; this waits for the device.

    Raises:
        UserError: the last `most` steps were all skipped; the batch of the last is in `folder`.
    """
    skipped = state.settle()
    if skipped:
        log.warning(
            "up to step %d: %d skipped, since the loss or a gradient was not finite, %d in all",
            state.step, skipped, state.skipped,
        )  # fmt: skip
    if state.bad_in_row < most:
        return
    with writing(folder):
        tensors = {
            f"{i}.{key}": value
            for i, batch in enumerate(micro_batches)
            for key, value in batch.items()
        }
        write_tensors(tensors, folder / BATCH)
        about = {"step": state.step, "lr": state.schedule.get_last_lr(), "keys": sorted(tensors)}
        write_plain(about, (folder / BATCH).with_suffix(".json"))
    raise UserError(
        f"the loss or a gradient was not finite in {state.bad_in_row} steps in a row, "
        f"up to step {state.step}",
        where=f"the batch of the last one: {folder / BATCH}",
        fix="lower trainer.lr, train longer warm-up, use trainer.precision=fp32 or bf16, and start "
        "with resume=never; trainer.max_bad_steps says how many are borne",
    )
