"""What the workers of this process hold, and their leases."""
