"""Hyper-parameter search: Optuna proposes, Hydra launches, validation decides, the test never."""
