"""What runs on Modal: a sheet for each deployment, the class that serves it, and the pipeline that fills the volumes.

`gemma` and its like are entries for `modal deploy` and `modal run`. `serving` holds the sheet's type, the class and the
images, `pipeline` what fills the volumes, `rehearsal` Modal's programs on a local control plane, which is not shipped.
May import hooks and supervisor.
"""
