"""Image grids, graphs and pages of a run."""
