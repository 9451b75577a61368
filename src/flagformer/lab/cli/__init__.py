"""The command line: thin functions that read arguments, call the library and print."""
