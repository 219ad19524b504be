"""Training: the step, the loop, devices, checkpoints. It knows the task protocol and no model."""
