"""What fills the volumes: build, download, verify, and which build is promoted.

`functions` is what `modal run` calls; the other modules know nothing of Modal. May import
modal_entry.serving, hooks and supervisor.
"""
