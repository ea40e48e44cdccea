"""One way to ask an endpoint and to judge its answer: text, stream, pictures, retry while it wakes.

May import supervisor.
"""
