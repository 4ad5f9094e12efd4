"""A training run: config, trainer, run state, optimisation and losses."""
