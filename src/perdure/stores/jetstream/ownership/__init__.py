"""What the workers of this process hold, and the leases that keep it."""
