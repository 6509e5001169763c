"""Random programs on a real store, while the processes that serve them are killed.

    python -m perdure.testing.converge --store sqlite --programs 1000 --kill-every 2
    python -m perdure.testing.converge --store nats --programs 1000 --kill-every 2 --workers 3

What the store has in the end is compared with a model (`perdure.testing.programs`): every outcome, the state of every
key, the order of its invocations, and every journal. The exit code is 0 if nothing differs, 1 if something does or
nothing ends any more, 2 for options that cannot be.

`options` is the command line; `run` goes from the start to the verdict; `fleet` starts and kills the processes, each of
which is `process`; `driver` is the client that starts programs and answers them; `folder` is what all of them share
beside the store; `verdict` compares; `stuck` shows what has not ended.
"""
