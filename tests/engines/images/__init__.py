"""The image server before a FLUX.2-klein pipeline of diffusers, in an environment of its own."""
