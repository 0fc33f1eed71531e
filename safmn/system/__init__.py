"""Access to the operating system: files, the terminal, signals and memory."""
