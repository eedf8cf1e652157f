"""Other formats: one module for each."""
