"""Bridges to other libraries. Each module needs an extra of the same name, and nothing below imports one at import."""
