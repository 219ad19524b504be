"""Trained models that leave segjax: published folders, StableHLO and ONNX."""
