"""Models between the files they come from and the workflows that change them."""
