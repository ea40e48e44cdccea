"""Checks of an endpoint from outside, and their report.

May import hooks.http, hooks.auth, hooks.warmup and supervisor.
"""
