"""A Python server that loads its model into its own process, and is supervised as any other program."""
