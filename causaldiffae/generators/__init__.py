"""Generators: the true structural causal models behind the synthetic data sets.

Each generator holds a data set's graph, its mechanisms, its renderer and `write_dataset`. For an image's labels and an
intervention it returns the true counterfactual labels and image; `measure` reads the labels off an image.
"""
