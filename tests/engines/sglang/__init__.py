"""SGLang on a CPU: its wheel without the CUDA half of its dependencies, and stubs for what imports ask for."""
