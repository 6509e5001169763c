"""Programs that measure; never tests. See README.md here for what was learned."""
