"""What fills the volumes and looks at them: build, download, inspection, and which build is promoted.

`functions` is what `modal run` calls; the other modules know nothing of Modal. May import
modal_entry.serving, hooks and supervisor.
"""
