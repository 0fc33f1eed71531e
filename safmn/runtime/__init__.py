"""Where and how a process computes: devices, precision and ranks."""
