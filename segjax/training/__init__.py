"""Training: step, loop, devices, checkpoints. It knows the protocol of `segjax.tasks`, no model."""
