"""Chip vendors, one folder each, found by the registry."""
