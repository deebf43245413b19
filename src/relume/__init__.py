"""relume says which units of a PyTorch network stopped learning, why, and which remedy brings them back."""
