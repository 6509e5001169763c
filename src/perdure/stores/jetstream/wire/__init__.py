"""The connection to a NATS server. The only code that knows nats-py, server URLs and credentials.

connection nats-py's client; the only module that uses its private attributes
link       subscriptions, hints and requests, across reconnects
reads      reads of streams
wire       guarded puts
protocol   headers, error codes, stored messages
access     server URLs and credentials
checks     checks of a server, and their errors
"""
