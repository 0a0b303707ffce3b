"""Anti-causal predictors: networks that read labels off images."""
