"""What runs on Modal: one spec sheet a model, the serving class below it, and the pipeline that fills the volumes.

`gemma` and its like are entries for `modal deploy` and `modal run`; `download` and `verify` are plain modules that know
nothing of Modal.
"""
