"""Who computes where: Ray actors that train client batches, and how they are started, given tasks, replaced.

May import ``training``, ``models`` and ``storage``. Begin with ``client_actor.py``, what an actor does; ``actor_pool.py``
starts and replaces actors; ``dispatch.py`` takes the tasks of a round through them, with retries; ``sum_tree.py`` says where
their sums meet, ``durations_and_timeouts.py`` when one counts as hung; ``remote_states.py`` lets nodes read each other's
personal states; ``auto_resources.py`` resolves every ``auto`` of ``resources:``, on a GPU with the help of ``gpu_trial.py``.
"""
