"""Counterfactuals of a test set, scored: interventions, the protocol, its run, scores, tables and report."""
