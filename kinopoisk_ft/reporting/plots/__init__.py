"""Draw the figures of runs and reports."""
