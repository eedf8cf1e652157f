"""What runs a decoder: torch, the native CPU engine, and numpy for the image tower. Import the one you need."""
