"""Components of the training loop (resuming, stopping, previews, checks) and training of the predictors."""
