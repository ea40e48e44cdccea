"""Steps and Observers, one noun a file: what makes a server warm, and what proves that it is.

Import the module that you need (`from hooks.warmup.steps import Text`); this package itself imports nothing.
"""
