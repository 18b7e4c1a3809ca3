"""A look as phones read it: one writer a format, each from the int8 values and scales of the `.pt`."""
