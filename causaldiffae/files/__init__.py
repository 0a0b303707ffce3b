"""Bounded readers and writers of file formats, independent of the method."""
