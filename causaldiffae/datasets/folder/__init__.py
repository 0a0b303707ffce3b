"""Your own data: a folder of images, a table of labels and a graph."""
