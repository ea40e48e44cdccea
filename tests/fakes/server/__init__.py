"""The parts of the fake server, a file a subject.

It starts in a few milliseconds, hundreds of times in a run of the tests: nothing here imports typing, pathlib or http.
"""
