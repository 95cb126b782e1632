"""Who computes where: Ray actors that train client batches, and how they are started, given tasks, replaced.

May import ``training``, ``models`` and ``storage``. Begin with ``client_actor.py``, what an actor does; ``actor_pool.py``
starts and replaces actors, ``dispatch.py`` takes the tasks of a round through them, ``auto.py`` resolves every ``auto`` of
``resources:``.
"""
