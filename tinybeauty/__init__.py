"""The rooms that the commands share; the commands import them, never the other way round."""
