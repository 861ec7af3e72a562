"""Compute metrics, confidence intervals, tests, calibration and slices from predictions."""
