"""Runs the embedded engine's server: `python -m supervisor.engines.embedded` takes llama-server's arguments."""

from supervisor.engines.embedded.program import main

if __name__ == "__main__":
    main()
