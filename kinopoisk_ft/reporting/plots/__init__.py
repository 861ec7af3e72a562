"""The figures of one run and of the comparison."""
