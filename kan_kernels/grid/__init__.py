"""Construction of knots, and refitting of splines to new knots."""
