"""What a training run needs beside the loop: run directory, resuming, stopping, previews, checks, predictors."""
