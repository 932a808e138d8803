"""Several trained models on the same validation cases: read, paired, tested, drawn, written as one page."""
