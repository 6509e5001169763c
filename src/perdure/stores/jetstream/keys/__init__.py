"""Keys: their queues, their holders and their state."""
