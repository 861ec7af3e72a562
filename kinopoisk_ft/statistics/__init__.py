"""Compute metrics and statistical comparisons from predictions."""
