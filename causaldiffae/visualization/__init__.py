"""Image grids, graph drawings and training curves."""
