"""The size of an update chosen by a score: candidates, evaluations, and the search among them."""
