"""The label of ignored pixels, which data, losses, scores and pictures share."""

IGNORE_LABEL = 255
