"""Real engines under the supervisor's lifecycle: `make engines`, or `python -m engines` with PYTHONPATH=tests.

A folder here with a `recipe.py` is an engine: `recipe` has the type, `environment` installs it, `lifecycle` has the
checks in their order, `session` is the supervised server that they look at, `table` and `page` show the results.
"""
