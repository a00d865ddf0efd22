"""The command line: every command, its options and its output on a terminal."""
