"""What the kernel tells: processes, their files and sockets, and which resource ran out.

May import errors, redact and nothing else of the project.
"""
