"""What the fast backends share: refusals, shapes, small tables, and the iteration behind certified patches."""
