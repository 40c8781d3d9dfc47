"""What a run looks like: one HTML page of one or more runs, and the pictures of its card."""
