"""From the work queue to the workers of this process."""
