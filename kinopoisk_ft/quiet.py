"""Keep libraries from talking over the run's own log, and out of the garbage collector's way."""

from __future__ import annotations

import gc
import logging
import os
from functools import cache


def quiet_libraries() -> None:
    """Turn off progress bars and load reports of transformers, datasets and MLflow.

    What they say of fresh weights is said by the run itself, once and by name.
    """
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@cache
def spare_libraries() -> None:
    """Let the collector pass over what imports left, once in a process.

    A million objects that live as long as the process take it 0.4 s each time.
    """
    gc.freeze()
