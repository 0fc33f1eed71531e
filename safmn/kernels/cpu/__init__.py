"""C++ kernels for CPUs. They are compiled on first use (:mod:`safmn.kernels.cpu.build`)."""
