"""``raysim bench``: what a round costs, beside the same training in plain torch."""
