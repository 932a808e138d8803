"""Studies: methods x folds on one data set, described in a file and run as a Snakemake workflow."""
