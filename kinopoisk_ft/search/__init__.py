"""Search hyper-parameters: Optuna suggests trials, Hydra runs them, validation scores rank them."""
