"""Time training steps of a BERT with random weights on random tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import BertConfig, BertForSequenceClassification

from common.shapes import Shape
from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.objective import Classification

VOCABULARY = 30_000
# The first steps compile kernels and fill caches; they are not timed.
WARM = 2


def time_steps(
    shape: Shape,
    settings: Sequence[str],
    batch: int,
    length: int,
    steps: int,
    ready: Callable[[], object] = lambda: None,
) -> float:
    """Return the median seconds of a training step in fp32 on a CPU, in this process.

    Args:
        settings: more overrides of the config.
        batch, length: reviews in a batch, and tokens in each review.
        ready: called between the warm-up and the timed steps.
    """
    fixed = ["trainer.device=cpu", "trainer.precision=fp32", f"trainer.batch_size={batch}"]
    with initialize_config_dir(str(get_conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[*fixed, *settings])
    rng = np.random.default_rng(0)
    ids = rng.integers(5, VOCABULARY, (batch, length))
    examples = Examples(ids.tolist(), np.arange(batch) % 2)
    trainer = instantiate(cfg.trainer)
    precision, clock = trainer.open()
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **shape))
    objective = Classification(0)
    state = trainer._setup(model, objective, precision, (), batch * (steps + WARM), clock)
    inputs = objective.collate(examples, np.arange(batch), rng)
    seconds = []
    # As in `Trainer.fit`, the project's dropout and attention replace PyTorch's.
    with trainer._accelerate(model, precision):
        for number in range(WARM + steps):
            if number == WARM:
                ready()
            start = time.perf_counter()
            trainer._step(state, [inputs], lambda _: None)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM:])
