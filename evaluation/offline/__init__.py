"""Judges a policy offline, from the logged experiences of another: `tamiyo evaluate`."""
