"""The commands, one file each: settings from the command line, then a task."""
