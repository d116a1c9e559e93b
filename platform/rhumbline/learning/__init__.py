"""From examples to a policy: weights on disk, packing, the two engines, the train loop."""
