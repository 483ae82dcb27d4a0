"""Who sets the learning-rate multiplier and the radius."""
