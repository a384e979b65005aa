"""From a run and a target to a predicted model."""
