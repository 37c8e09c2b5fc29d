"""One OpenAI-compatible endpoint in front of instances of unlike capacity."""
