"""Mathematics of updates: singular triplets, their course over time, and the direction of a run."""
