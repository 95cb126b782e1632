"""Train and evaluate a client batch: K clients at once, vectorised, on one device.

May import ``data``, ``storage``, ``config`` and ``functional``; knows nothing of Ray. Begin with ``engine.py``; ``tasks.py``
has what a worker may be asked to do, ``aggregation.py`` how the uploads of clients are summed, ``algorithm_server.py`` what
the server makes of them, ``for_each_client.py`` how a function of one client becomes one of K.
"""
