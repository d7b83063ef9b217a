"""Several runs compared: experiments, comparison, benchmark, tuning."""
