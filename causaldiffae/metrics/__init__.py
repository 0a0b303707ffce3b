"""Metrics of counterfactual images. They take arrays and know no model.

effectiveness     labels predicted from the counterfactual against the true counterfactual labels; treatment effects
truth             pixels against the true counterfactual image, and model-free baselines
axioms            composition and reversibility
realism           FID and KID on features, CLD
interpretability  IM1 and IM2
dci               disentanglement, completeness, informativeness of latents
intervals         bootstrap over images
"""
