"""What watches a training: its log, curves, validation, and the loss monitor."""
