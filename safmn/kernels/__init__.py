"""C++ kernels for CPUs: how they are built (:mod:`safmn.kernels.cpu.build`), and those for training."""
