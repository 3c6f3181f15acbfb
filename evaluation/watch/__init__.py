"""Measures the watch page: how soon it shows something, how late an event is, what a server costs."""
