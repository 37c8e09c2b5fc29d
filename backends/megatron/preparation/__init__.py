"""From text on disk to indexed token files: what ``tools/prepare_data.py`` is made of. No torch but in ``indexed``."""
