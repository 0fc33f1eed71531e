"""Scoring networks on benchmark sets, and reporting the scores."""
