"""Trained models that leave segjax: published folders and StableHLO."""
