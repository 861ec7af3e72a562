"""Search hyperparameters: Optuna suggests trials, Hydra runs them, validation scores rank them."""
