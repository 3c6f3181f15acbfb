"""What stages publish: sizes, headers, deliveries, and reading it back."""
