"""Films and animations, frame by frame."""
