"""One temperature for a run's logits, fitted on validation.

Guo, C. et al. (2017). On Calibration of Modern Neural Networks.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss

# Beyond these a temperature says only that validation had no mistakes, or no signal.
TEMPERATURES = (0.05, 20.0)
SMALLEST = float(np.finfo(np.float64).tiny)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the least negative log-likelihood of labels (N,).

    `probabilities` (N, classes) are of reviews that neither trained nor test, of validation.
    """
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: log_loss_of(scaled(probabilities, float(np.exp(log_t))), labels),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature), out of softmax(logits): the answers stay the same."""
    logits = np.log(np.maximum(probabilities, SMALLEST))
    result: np.ndarray = softmax(logits / temperature, axis=1)
    return result


def log_loss_of(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood in nats."""
    return float(log_loss(labels, probabilities, labels=list(range(probabilities.shape[1]))))
