"""Okabe and Ito's colours, which colour-blind readers can tell apart, for pictures and for runs in MLflow's charts."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
