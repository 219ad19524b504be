"""Trained models: the model of a run, and its predictions of a source."""

from segjax.trained.run import TrainedRun, load_run, predict_all

__all__ = ["TrainedRun", "load_run", "predict_all"]
