"""`supervise rehearse`: a snapshot and a restore in a gVisor sandbox, on this machine, before a deploy."""
