"""The command line: one file a command. Each parses, prints, and exits; the work is done below.

Exit codes: 0 good, 1 a check found something, 2 wrong usage or configuration, 3 cannot start.
"""
