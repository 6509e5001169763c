"""The NATS server: the only code that knows nats-py, URLs and credentials, and what can be wrong with a server.

connection nats-py's connection; the only use of what is private in it
link       subscriptions, hints and requests, over reconnects
reads      messages of streams
wire       guarded puts
protocol   headers, codes, messages as they are stored
access     servers and credentials
checks     what can be wrong with a server
"""
