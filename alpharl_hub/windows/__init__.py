"""One reading of a trajectory: cut into windows, planned, read, handed to workers."""
