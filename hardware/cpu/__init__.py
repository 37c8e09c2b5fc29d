"""The plain CPU: always there, as many ranks as you like."""
