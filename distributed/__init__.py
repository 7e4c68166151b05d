"""The training service on Ray Train: configuration, data, strategies, loop, checkpoints, tracking."""
