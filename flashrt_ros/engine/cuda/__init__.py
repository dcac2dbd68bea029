"""The GPU below the engine: its driver, compiled kernels, launches and graphs."""
