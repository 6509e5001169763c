"""Rows, lists and counts."""
