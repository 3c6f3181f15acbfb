"""Reads the records that carry nearly all numbers straight from their bytes, without a Python object a number."""
