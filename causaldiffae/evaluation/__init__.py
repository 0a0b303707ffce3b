"""Evaluation of counterfactuals on a test set: interventions, protocol, runner, scores, tables and report."""
