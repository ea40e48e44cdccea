"""The embedded engine: llama.cpp's server inside a Python process, from the extra `warmboot[local]`."""
