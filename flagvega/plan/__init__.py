"""Chooses a layout: costs, memory, search, simulation of the schedule, explanation. No engine, no torch."""
