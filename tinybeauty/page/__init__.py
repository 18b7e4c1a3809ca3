"""The web page: its source, its engine, and how both become one file."""
