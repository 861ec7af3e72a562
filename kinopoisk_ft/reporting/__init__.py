"""Turn the runs in an MLflow store into tables, figures, conclusions and recommendations."""
