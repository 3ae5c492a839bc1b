"""The command line: a module per command, loaded when it is called, so that `sartor --help` loads nothing heavy."""
