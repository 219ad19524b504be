"""Files that appear whole or not at all, numbers as JSON, and flat dicts. Every room may use it."""
