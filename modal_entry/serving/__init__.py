"""The sheet's type and the class that serves it on Modal.

May import hooks and supervisor.
"""
