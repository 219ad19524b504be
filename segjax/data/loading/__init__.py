"""From a source to batches: order, workers, padding, reading ahead."""
