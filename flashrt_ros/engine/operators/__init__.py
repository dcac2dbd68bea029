"""Kernels and products as calls on tensors; contracts are in the kernel files."""
