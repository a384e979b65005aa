"""Does this run extrapolate? Fit on its early checkpoints, predict later ones that exist."""
