"""File formats, read within bounds; nothing here knows the method."""
