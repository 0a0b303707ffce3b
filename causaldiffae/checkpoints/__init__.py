"""Storage of weights: checkpoints, background writer, object storage, model folders and model cards."""
