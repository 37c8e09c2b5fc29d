"""On the ``PYTHONPATH`` of vLLM, this folder makes it run on emulated chips; nothing of it is installed."""
