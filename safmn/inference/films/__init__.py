"""Read and write films and animations frame by frame."""
