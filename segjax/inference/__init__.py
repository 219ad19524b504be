"""How a network covers an image: crops, tiles, scales and flips, and how the parts are joined."""
