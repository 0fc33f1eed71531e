"""How weights move: optimisers, learning-rate schedules, moving averages."""
