"""What trains the embedded default model: drawn scenes with exact answers, public sets, and the recipe around them."""
