"""Builders of profiles: an engine's own settings in, a `Profile` out. The core imports none of them."""
