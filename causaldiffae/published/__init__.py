"""Other people's weights, opened into the modules of this package."""
