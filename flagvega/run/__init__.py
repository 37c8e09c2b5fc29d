"""A started job: its directory, its supervisor, its end."""
