"""Nothing: a chip that runs nothing and of which there is any number, for plans of any size."""
