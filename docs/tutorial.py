# %% [markdown]
# # Counterfactual images in Python
#
# Runs as it is (`python docs/tutorial.py`), cell by cell in an editor that knows `# %%`, or as a notebook
# (`jupytext --to notebook docs/tutorial.py`). It needs a clone of the repository: weights and examples come with it.

# %% [markdown]
# ## A model and its causal graph

# %%
from pathlib import Path

import numpy as np

from causaldiffae import CausalDiffAE

out = Path("tutorial_out")
out.mkdir(exist_ok=True)
model = CausalDiffAE.from_pretrained("pendulum-mini", steps=12)
print(model)
print(model.graph.parents["shadow_length"])

# %% [markdown]
# ## What if the pendulum had swung to the left?
#
# `do` speaks in the labels' own units. The shadow must follow, the light must stay.

# %%
pictures = model.examples(4)
cf = model.counterfactual(pictures, do={"angle": -20.0})
cf.save(out / "angle.png")  # in a notebook: cf.show()
for name in model.graph.names:
    print(f"{name:16s} {cf.factual_labels[name].round(1)} -> {cf.labels[name].round(1)}")

# %% [markdown]
# The truth is known here, so the answer can be scored: mean pixel error, 0..255, against doing nothing.


# %%
def error(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two arrays of pixels."""
    return float(np.abs(first.astype(float) - second).mean())


print(f"counterfactual {error(cf.images, cf.truth):.2f}, doing nothing {error(pictures.images, cf.truth):.2f}")
assert error(cf.images, cf.truth) < 0.5 * error(pictures.images, cf.truth)

# %% [markdown]
# ## Abduction, action, prediction
#
# One abduction serves any number of interventions. Without one, the images come back: the null intervention.

# %%
noise = model.abduct(pictures)
print("u", tuple(noise.u.shape), "x_T", tuple(noise.x_T.shape))
back = model.predict(noise)
print(f"reconstruction {error(back.images, pictures.images):.2f}")
for light in (80.0, 125.0):
    model.predict(noise, do={"light": light}).save(out / f"light_{light:.0f}.png")

# %% [markdown]
# ## An intervention on an effect leaves its causes where they are
#
# In the structural model's labels that is exact; how well the picture obeys is another matter (README, "Weak spots").

# %%
shadow = model.predict(noise, do={"shadow_length": 6.0})
assert np.array_equal(shadow.labels["angle"], back.labels["angle"])

# %% [markdown]
# ## New images
#
# u from its prior, z by the structural model, under an intervention or none; x_T is plain noise.

# %%
model.sample(6, seed=1).save(out / "samples.png")
steep = model.sample(6, do={"light": 100.0}, seed=1)
print("light", steep.labels["light"])

# %% [markdown]
# ## Your own pictures, your own folder
#
# Arrays, tensors in [-1, 1], PIL images and files are all taken; what a model needs beside the image (a digit's
# class) is read off it. `save_pretrained` writes weights, configuration and a model card; `from_pretrained` opens the
# folder, or the same files on the Hugging Face Hub (`pip install -e '.[hub]'`), where `digits.push_to_hub("me/digits")`
# puts them.

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
