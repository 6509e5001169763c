"""Keys: queues, holders and state."""
