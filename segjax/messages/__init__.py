"""Words that error messages share. Every room may use it."""
