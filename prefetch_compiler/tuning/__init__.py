"""The offline job: search space, Optuna study, isolated worker, measurement, verification. Serving never loads it."""
