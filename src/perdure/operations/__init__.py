"""What can be asked of a store and told to its invocations, in terms of invocations and values."""
