"""On the ``PYTHONPATH`` of vLLM, this folder lets instances hand caches over; nothing of it is installed."""
