"""Studies of several runs or models: experiments, comparison, benchmark, tuning."""
