"""Score networks on benchmark sets and report the scores."""
