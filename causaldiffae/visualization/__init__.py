"""Image grids, drawings of graphs, training curves."""
