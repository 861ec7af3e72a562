"""Draw the figures of a run and of the comparison."""
