"""gRPC services for the examples, each run in a process of its own."""
