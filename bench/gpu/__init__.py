"""What is to be seen on a GPU, in the few minutes for which one may be there: measuring, and training."""
