"""A page to draw digits on and see what trained models say: `python -m mnist_sweep.demo`."""
