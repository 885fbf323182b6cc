"""Data sets that are imported: archives, class folders, tables, and one file a published set."""
