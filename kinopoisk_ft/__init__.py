"""Fine-tune text classifiers in different ways and compare them fairly."""

__version__ = "0.1.0"
