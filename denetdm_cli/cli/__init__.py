"""The commands, one file a group; heavy imports wait inside the functions so that --help answers at once."""
