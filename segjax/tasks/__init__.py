"""Tasks: a model, its loss and its decoding, as pure functions of variables and batch.

The training code relies on the protocol alone; no task inherits from another.
"""

from segjax.tasks.instance import InstanceTask
from segjax.tasks.protocol import Evaluator, Task
from segjax.tasks.semantic import SemanticTask

__all__ = ["Evaluator", "InstanceTask", "SemanticTask", "Task"]
