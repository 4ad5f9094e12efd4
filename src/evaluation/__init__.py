"""One forward pass for validation, scoring and inference, and what is computed from it."""
