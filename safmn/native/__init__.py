"""C++ kernels for CPUs: how they are built (:mod:`safmn.native.build`), and those for training."""
