"""The benchmark: `python -m tests.bench` from a clone; see `__main__`."""
