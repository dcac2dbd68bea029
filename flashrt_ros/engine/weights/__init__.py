"""Weights in the form that the kernels multiply by: number formats, packing, the store on disk."""
