"""Anti-causal predictors: networks that predict the labels of an image."""
