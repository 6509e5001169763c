"""What the stores that keep an index in SQL share."""
