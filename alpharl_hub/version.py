"""The version of the package, in the one place that packaging, manifests and user agents read."""

__version__ = "0.1.0"
