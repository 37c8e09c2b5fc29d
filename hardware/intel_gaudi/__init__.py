"""Intel Gaudi: habana_frameworks. Untested on hardware."""
