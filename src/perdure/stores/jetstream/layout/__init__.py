"""Streams, subjects and headers: names, settings, creation."""
