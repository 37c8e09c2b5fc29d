"""Serving: instances of engines, started and kept."""
