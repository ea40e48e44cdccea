"""llama.cpp's router: a real `llama-server` built from source, and two tiny models."""
