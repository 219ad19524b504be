"""Files that appear whole or not at all, and numbers as JSON. Every room may use it."""
