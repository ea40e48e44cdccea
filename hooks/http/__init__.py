"""One way to ask an endpoint and to judge its answer: text, stream, pictures, counters, retries while it wakes.

What differs between engines (routes, fields, counters) comes from the dialect of the child's profile. May import
supervisor.
"""
