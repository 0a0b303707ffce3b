# %% [markdown]
# # Counterfactual images in Python
#
# Run it as a script (`python docs/tutorial.py`), cell by cell in an editor that supports `# %%`, or as the notebook
# `docs/tutorial.ipynb`, which `python tools/make_notebook.py` makes from it. It requires a clone of the repository,
# which holds weights and examples.

# %% [markdown]
# ## A model and its causal graph

# %%
import warnings
from pathlib import Path

import numpy as np

from causaldiffae import CausalDiffAE

out = Path("tutorial_out")
out.mkdir(exist_ok=True)
model = CausalDiffAE.from_pretrained("pendulum-mini", steps=12)
print(model)
print(model.graph.parents["shadow_length"])

# %% [markdown]
# ## An intervention
#
# `do` is in the labels' own units. The angle changes, the shadow follows, and the light stays.

# %%
images = model.examples(4)
cf = model.counterfactual(images, do={"angle": -20.0})
cf.save(out / "angle.png")  # in a notebook: cf.show()
for name in model.graph.names:
    print(f"{name:16s} {cf.factual_labels[name].round(1)} -> {cf.labels[name].round(1)}")

# %% [markdown]
# The true counterfactual is known here, so the result can be scored: mean pixel error on 0..255, beside that of the
# factual image.


# %%
def error(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two arrays of pixels."""
    return float(np.abs(first.astype(float) - second).mean())


print(f"counterfactual {error(cf.images, cf.truth):.2f}, factual image {error(images.images, cf.truth):.2f}")
assert error(cf.images, cf.truth) < 0.5 * error(images.images, cf.truth)

# %% [markdown]
# ## Abduction, action, prediction
#
# One abduction serves any number of interventions. The null intervention, without `do`, reconstructs the images.

# %%
noise = model.abduct(images)
print("u", tuple(noise.u.shape), "x_T", tuple(noise.x_T.shape))
reconstruction = model.predict(noise)
print(f"reconstruction {error(reconstruction.images, images.images):.2f}")
for light in (80.0, 125.0):
    model.predict(noise, do={"light": light}).save(out / f"light_{light:.0f}.png")

# %% [markdown]
# ## An intervention on an effect leaves its causes unchanged
#
# This is exact for the labels of the structural model; for the image see "Weak spots" in `docs/results.md`. A warning
# says that no training image has such a shadow at such angles.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    shadow = model.predict(noise, do={"shadow_length": 6.0})
print(*(warning.message for warning in caught))
assert np.array_equal(shadow.labels["angle"], reconstruction.labels["angle"])

# %% [markdown]
# ## New images
#
# u is drawn from its prior and x_T from N(0, I); z follows from the structural model, with or without an intervention.

# %%
model.sample(6, seed=1).save(out / "samples.png")
steep = model.sample(6, do={"light": 100.0}, seed=1)
print("light", steep.labels["light"])

# %% [markdown]
# ## Your own images and model folders
#
# Images are arrays, tensors in [-1, 1], PIL images or files. What a model needs besides the image (a digit's class) is
# read by a predictor. `save_pretrained` writes weights, configuration and a model card. `from_pretrained` opens the
# folder, or the same files on the Hugging Face Hub (`pip install -e '.[hub]'`), where `digits.push_to_hub("me/digits")`
# uploads them.

# %%
from PIL import Image

digits = CausalDiffAE.from_pretrained("morphomnist-mini", steps=12)
Image.fromarray(digits.examples(3).images[2, 0]).save(out / "two.png")
thick = digits.counterfactual([out / "two.png"], do={"thickness": 3.5})
print("read as digit", digits.read([out / "two.png"]).classes, "intensity", thick.labels["intensity"].round())
thick.save(out / "thick.png")
folder = digits.save_pretrained(out / "my_digits")
again = CausalDiffAE.from_pretrained(folder, steps=12)
assert np.array_equal(again.counterfactual([out / "two.png"], do={"thickness": 3.5}).images, thick.images)
