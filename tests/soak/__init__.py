"""The long test: kills at random, then all commands over and over on a bad line."""
