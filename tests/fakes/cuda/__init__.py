"""A CUDA driver, runtime and NVML in C whose "GPU memory" is host memory, and programs that use them as engines do."""
