"""The model card: metadata for the Hub, a page for people."""
