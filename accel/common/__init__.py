"""What the fast backends share: refusals, shapes, small tables, and the iteration of the certified solve."""
