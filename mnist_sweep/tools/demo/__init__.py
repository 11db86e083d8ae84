"""A page to draw digits on, with the answers of trained models."""
