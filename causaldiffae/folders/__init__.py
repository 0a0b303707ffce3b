"""Folders of images with a table of labels and a causal graph: your own data. `image_folder` is the way in."""
