"""Fit the output layer before training, so that the first steps do not distort the layers below it.

Kumar, A. et al. (2022). Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution, https://arxiv.org/abs/2202.10054.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.batching import Examples, batch_by_length
from kinopoisk_ft.training.device import to_device
from kinopoisk_ft.training.distributed.processes import broadcast_from_main
from kinopoisk_ft.training.distributed.sharding import shard_like
from kinopoisk_ft.training.evaluate import restore_order
from kinopoisk_ft.training.memory import halve_on_out_of_memory
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

# Logit of a class without a review in the train split.
# The odds against a class with logit 0 are exp(-10), about 5e-5.
ABSENT = -10.0


def find_output_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and the module of the last linear layer of the head that is trained.

    Raises:
        UserError: no linear layer is trained.
    """
    # Models of transformers have this attribute. XLM-RoBERTa defines its encoder after its head.
    encoder = f"{getattr(model, 'base_model_prefix', '')}."
    layers = [
        (name, part)
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
        and part.weight.requires_grad
        and not name.startswith(encoder)
    ]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no trainable linear layer, so no head can be fitted first",
            where="trainer.head_first",
            fix="set trainer.head_first=false",
        )
    # PEFT trains a copy of the head, and some adapters add linear layers that come after it.
    copies = [(name, part) for name, part in layers if "modules_to_save" in name.split(".")]
    return (copies or layers)[-1]


def exclude_output_layer(fresh: Iterable[str], model: nn.Module) -> list[str]:
    """Return the names of newly initialized parameters without those of the output layer.

    The output layer is fitted before training. It therefore does not need the higher learning rate
    that randomly initialized weights need.
    """
    fitted = f"{find_output_layer(model)[0]}."
    return [name for name in fresh if not name.startswith(fitted)]


def fit_head(state: State, train: Examples, balanced: bool) -> None:
    """Fit the output layer by logistic regression on its inputs.

    The inputs are computed in evaluation mode.

    Args:
        balanced: whether each class has the same total weight.

    Raises:
        UserError: the logits are not the output of the layer.
    """
    name, layer = find_output_layer(state.model)
    features, state.eval_batch_size = halve_on_out_of_memory(
        lambda rows: _compute_inputs(state, name, layer, train, rows),
        state.eval_batch_size,
        state.precision.device,
        "the forward pass for the head",
    )
    state.model.train()
    # The solutions of several ranks would differ by rounding.
    weight, bias = broadcast_from_main(
        lambda: _fit(features, train.labels, layer.out_features, balanced)
    )
    with torch.no_grad():
        for parameter, value in ((layer.weight, weight), (layer.bias, bias)):
            if parameter is not None:
                full = torch.as_tensor(value, dtype=torch.float32, device=state.precision.device)
                parameter.copy_(shard_like(full, parameter))
    log.info("%s was fitted first, by logistic regression on %d reviews", name, len(train))


@torch.inference_mode()
def _compute_inputs(
    state: State, name: str, layer: nn.Linear, examples: Examples, batch_size: int
) -> np.ndarray:
    """Return the inputs of the output layer for all examples, (N, in_features)."""
    inputs: list[Tensor] = []
    output = None

    def record(_: nn.Module, args: Any, result: Tensor) -> None:
        nonlocal output
        # args[0] is (batch, in_features). Under autocast, it may be in half precision.
        inputs.append(args[0].float().cpu())
        output = result

    hook = layer.register_forward_hook(record)
    batches, rng = batch_by_length(examples, batch_size), np.random.default_rng(0)
    state.model.eval()
    try:
        for rows in batches:
            batch = to_device(state.objective.collate(examples, rows, rng), state.precision.device)
            with state.precision.autocast():
                # This calls the objective, because a batch may contain cached activations.
                _, logits = state.objective.loss_sum(state.model, batch)
            # If the logits or the layer are not suitable, this ends the run at the first batch.
            if not logits.isfinite().all():
                raise UserError(
                    f"the logits are not finite in {state.precision.kind}, so {name} cannot be "
                    "fitted first",
                    where="trainer.head_first",
                    fix="use trainer.precision=fp32, or set trainer.head_first=false",
                )
            if output is None or not torch.equal(output.float(), logits.float()):
                raise UserError(
                    f"the logits of this model are not the output of {name}, so it cannot be "
                    "fitted first; for example, decoders of transformers apply it to each token",
                    where="trainer.head_first",
                    fix="use model.pooling=mean or last, or set trainer.head_first=false",
                )
    finally:
        hook.remove()
    return restore_order(torch.cat(inputs), batches, len(examples)).numpy()


def _fit(
    features: np.ndarray, labels: np.ndarray | None, classes: int, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    # The L2 penalty treats all coefficients alike, so the features need the same scale.
    scaler = StandardScaler()
    regression = LogisticRegression(max_iter=1000, class_weight="balanced" if balanced else None)
    regression.fit(scaler.fit_transform(features), labels)
    return _as_linear(regression, scaler, classes)


def _as_linear(regression: Any, scaler: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert a regression on scaled inputs to a linear layer for the original inputs.

    Returns:
        The weight (classes, in_features) and the bias (classes,) of the layer.
    """
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:
        # scikit-learn stores only the difference of the two logits.
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    # The layer includes the scaling: w (x - mean) / scale + b = (w / scale) x + b - w mean / scale.
    weight = np.zeros((classes, coefficients.shape[1]))
    bias = np.full(classes, ABSENT)
    weight[regression.classes_] = coefficients / scaler.scale_
    bias[regression.classes_] = intercepts - (coefficients / scaler.scale_) @ scaler.mean_
    return weight, bias
