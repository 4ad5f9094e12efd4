"""Networks, what they learn, and their files."""
