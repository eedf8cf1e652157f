"""How the embedded model ``nano`` is made: drawn scenes with exact ground truth, and what is asked about them."""
