"""Modal on this machine, without an account: its own CLI and container entrypoint against a local control plane."""
