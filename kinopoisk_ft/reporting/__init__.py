"""Runs of the MLflow store, turned into a table, pictures, conclusions and recommendations."""
