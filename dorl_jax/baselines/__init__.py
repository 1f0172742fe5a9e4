"""What the method is compared with: other vectors of the same cells, judged in the same folds."""
