"""What is asked of counterfactual images; every metric takes arrays and knows no model.

effectiveness   labels read off the counterfactual against the true counterfactual labels; effects of do()
truth           pixels against the true counterfactual image, beside doing nothing and the nearest training image
axioms          composition (asking nothing changes nothing) and reversibility (there and back)
realism         FID and KID on features, CLD
dci             disentanglement, completeness, informativeness of latents
intervals       bootstrap over images
"""
