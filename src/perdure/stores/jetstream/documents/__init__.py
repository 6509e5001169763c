"""Documents on JetStream: one message per document in the stream of records of its partition."""
