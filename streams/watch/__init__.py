"""What people look at: a page, and documents for terminals, made from the topics or from a recording."""

PORT = 8470
"""Of the page, unless another is chosen."""
