"""Native kernels: C++ for CPUs (:mod:`safmn.kernels.cpu`) and Triton for GPUs (:mod:`safmn.kernels.gpu`)."""
