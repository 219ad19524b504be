"""Sources: objects with a length and examples by index."""
