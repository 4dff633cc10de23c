"""Score: the tiers of evaluation and the plan that chooses among them."""
