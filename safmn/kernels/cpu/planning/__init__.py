"""Run any network on the native kernels: record its operations, join them into passes, and call the kernels."""
