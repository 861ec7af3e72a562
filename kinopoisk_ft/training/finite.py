"""What to do about a loss or a gradient that is not finite."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_plain, writing
from kinopoisk_ft.training.snapshots import write_tensors
from kinopoisk_ft.training.state import State

BATCH = "bad_batch.safetensors"


def check_finite(
    state: State, micro_batches: list[dict[str, Tensor]], most: int, folder: Path
) -> None:
    """Stop a run of which no good can come; this waits for the device.

    Raises:
        UserError: `most` steps in a row were skipped since the last time, or up to then; the batch
            of the last step is in `folder`.
    """
    state.settle()
    row, state.longest_row = state.longest_row, state.bad_in_row
    if row < most:
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
        f"the loss or a gradient was not finite in {row} steps in a row, up to step {state.step}",
        where=f"the batch of step {state.step}: {folder / BATCH}",
        fix="lower trainer.lr, train longer warm-up, use trainer.precision=fp32 or bf16, and start "
        "with resume=never; trainer.max_bad_steps says how many are borne",
    )
