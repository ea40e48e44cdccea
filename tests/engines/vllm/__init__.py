"""vLLM on a CPU: PyPI's build of it for CPUs, and a tiny Qwen3 with random weights."""
