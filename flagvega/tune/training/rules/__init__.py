"""What never becomes a trial: one rule a file, each a function that returns a reason or None.

Rules of meshes and layouts hold before anything runs. Rules of history compare a candidate with trials that are done.
"""
