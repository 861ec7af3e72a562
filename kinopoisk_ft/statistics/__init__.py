"""Metrics of per-review predictions, with intervals, tests, calibration and slices."""
