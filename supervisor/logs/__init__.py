"""The child's output: drained, split into lines, cleaned, and written as events by the sink.

May import the leaves (errors, events, profile, redact) and linux.
"""
