"""Streams, subjects and headers: their names, their settings, and how they are made."""
