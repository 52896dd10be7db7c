"""One file a workflow: what a command does, in the order in which it does it, made of the parts beneath."""
