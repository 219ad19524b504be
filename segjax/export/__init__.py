"""Trained models that leave segjax: published folders, and programs for other runtimes."""
