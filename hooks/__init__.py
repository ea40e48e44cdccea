"""Ready-made Steps: warmup, authentication, artifacts, snapshot contract, golden answer. One package for each subject.

Import what you need from its package (`from hooks.warmup import Text`); this one imports nothing.
"""
