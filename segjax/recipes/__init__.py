"""Papers' protocols: what joins a model, its task and its input pipeline into an experiment."""
