"""Fine-tune text classifiers in different ways, and compare the results fairly."""

__version__ = "0.1.0"
