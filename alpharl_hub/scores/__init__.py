"""The score of every checkpoint, and the step at which a score is reached."""
