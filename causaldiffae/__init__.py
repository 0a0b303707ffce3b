"""Counterfactual images with causal diffusion autoencoders (CausalDiffAE) and Diff-SCM."""
