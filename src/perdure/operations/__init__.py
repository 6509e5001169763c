"""The operations on a store and its invocations, in terms of invocations and values."""
