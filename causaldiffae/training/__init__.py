"""Parts of a training run besides the loop: run directory, resuming, stopping, previews, checks; predictor training."""
