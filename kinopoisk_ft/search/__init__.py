"""Search hyperparameters with Optuna, and run each trial as a Hydra job."""
