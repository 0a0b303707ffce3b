"""Data sets, one file each, their registry, label subsets and interventional images."""
