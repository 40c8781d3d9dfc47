"""The tasks of the mini-suite, one a file, each frozen: the same items on every machine, known by their hash."""
