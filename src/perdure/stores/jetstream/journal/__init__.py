"""Journals: frames on a stream, large payloads in pieces, long journals in segments."""
