"""Baselines of CausalDiffAE, with the same data, trainer, U-Net and counterfactual interface.

conditional   no encoder; a structural model of the given labels
diffae        an encoder without a graph; latents tied to the labels (aligned) or free (unaligned)
causalvae     the same encoder, structural model and label prior with a convolutional decoder
"""
