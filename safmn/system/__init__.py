"""What the package needs of the operating system: files, the terminal, signals, memory."""
