"""Components of our own, each a Python class beside its script."""
