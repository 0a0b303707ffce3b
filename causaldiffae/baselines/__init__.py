"""The models that CausalDiffAE is compared with: the same data, trainer, U-Net, and counterfactual interface.

conditional   labels in, no encoder; a structural model of the labels themselves
diffae        an encoder without a graph, its latents tied to the labels (aligned) or free
causalvae     the same encoder, structural model and label prior with a convolutional decoder
"""
