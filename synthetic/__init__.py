"""The synthetic world: a dog in the SMAL file layout and photographs of it with ground truth."""
