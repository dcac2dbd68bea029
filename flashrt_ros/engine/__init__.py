"""How a policy is computed fast: kernels, packed weights, static buffers and two CUDA graphs."""
