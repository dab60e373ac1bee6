"""One training run: strategy, step, loop, evaluation, checkpoints, records. Nothing here knows Ray."""
