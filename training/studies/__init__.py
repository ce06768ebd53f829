"""Studies: lists of recipes on one budget, what is measured of each run, and what it says of the papers' claims."""
