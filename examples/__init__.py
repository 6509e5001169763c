"""Programs that show Perdure at work. Run one from the repository's root: `python -m examples.simple`."""
