"""Models that leave: StableHLO, ONNX and published folders."""
