"""The papers' protocols: join a model, its task and its input pipeline to an experiment."""
