"""What can be set: the kinds of values, the options, the tables of a file, and how they are written as TOML."""
