"""What the stores of one process share."""
