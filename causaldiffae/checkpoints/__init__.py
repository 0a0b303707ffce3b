"""Weights on disk: checkpoints, the background writer, object storage, model folders and their cards."""
