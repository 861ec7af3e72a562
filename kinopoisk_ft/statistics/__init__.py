"""What chance explains: intervals, tests, calibration and slices of per-review predictions."""
