"""The command line: options, environment variables and --help."""
