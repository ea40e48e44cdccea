"""What the server writes: drained (pump), cut into lines, cleaned of controls and secrets, shown as events (sink).

May import the leaves (errors, events, profile, redact) and linux.
"""
