"""Turn runs of an MLflow store into tables, figures, conclusions and recommendations."""
