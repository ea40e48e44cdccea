"""The control socket of `supervise run` and `exec`: its state, and seals and resumes that other commands ask for.

`folder` is the private folder with one socket a supervisor, `messages` what is said over it (a line of JSON each way),
`subject` the supervision as commands see it, `server` and `client` the two ends. May import the lifecycle's handle and
the leaves; only the command line imports it.
"""
