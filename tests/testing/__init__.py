"""perdure.testing, tested."""
