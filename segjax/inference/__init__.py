"""How a network covers an image: crops, tiles, scales, flips, and how the parts are joined."""
